//! A loaded model as a scorer of texts.

use scrimp_backend::Backend;
use scrimp_engine::batch::{Batch, Logits, SequenceStep};
use scrimp_engine::runner::ModelRunner;

use crate::Scorer;

/// One context at a time, in the cache's first blocks.
impl<B: Backend> Scorer for ModelRunner<B> {
    fn score(
        &mut self,
        tokens: &[u32],
        computed: usize,
        wanted: bool,
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), String> {
        let config = self.config();
        let (block_size, num_blocks) = (config.kv.block_size, config.num_blocks);
        let slots = num_blocks * block_size;
        if computed + tokens.len() > slots {
            let asked = computed + tokens.len();
            return Err(format!(
                "a context of {asked} tokens does not fit the cache of {slots}"
            ));
        }
        let blocks: Vec<u32> = (0..num_blocks as u32).collect();
        let logits = if wanted { Logits::All } else { Logits::No };
        let mut batch = Batch::default();
        let step = SequenceStep {
            token_ids: tokens,
            num_computed: computed,
            blocks: &blocks,
            logits,
        };
        batch.push(&step, block_size);
        self.execute(&batch, &mut |rows| {
            for (i, row) in rows.iter() {
                sink(i, row);
            }
        })
        .map_err(|e| e.to_string())
    }

    fn vocab_size(&self) -> usize {
        self.model().vocab_size
    }

    fn max_tokens(&self) -> usize {
        self.config().limits.max_rows
    }
}
