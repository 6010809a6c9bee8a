//! Every promise of the scheduler, checked.

use scrimp_memory::Corrupt;

use crate::{Scheduler, Sequence, SequenceStatus};

impl Scheduler {
    /// Checks every promise of the queues and of the pool under them.
    ///
    /// # Errors
    /// The first one that is broken: a defect of scrimp.
    pub fn check_integrity(&self) -> Result<(), Corrupt> {
        for seq in self.seqs.values() {
            self.check_sequence(seq).map_err(Corrupt)?;
        }
        if self.running.len() > self.config.max_num_seqs {
            return Err(Corrupt(format!("{} sequences run", self.running.len())));
        }
        let queued = self.running.iter().chain(&self.waiting);
        if let Some((_, id)) = queued.clone().find(|(_, id)| !self.seqs.contains_key(id)) {
            return Err(Corrupt(format!("{id} has ended and is in a queue")));
        }
        let tables = self.seqs.values().map(|seq| &seq.block_table);
        self.pool.check_integrity(tables)
    }

    fn check_sequence(&self, seq: &Sequence) -> Result<(), String> {
        let (id, status) = (seq.id, seq.status);
        let queues = (
            self.running.contains(&seq.key()),
            self.waiting.contains(&seq.key()),
        );
        let expected = match status {
            SequenceStatus::Running => (true, false),
            SequenceStatus::Waiting | SequenceStatus::Preempted => (false, true),
            SequenceStatus::WaitingOnParent(_) => (false, false),
        };
        if queues != expected {
            return Err(format!(
                "{id} is {status:?}, and in (running, waiting): {queues:?}"
            ));
        }
        if let SequenceStatus::WaitingOnParent(parent) = status
            && !self
                .seqs
                .get(&parent)
                .is_some_and(|p| p.children.contains(&id))
        {
            return Err(format!("{id} waits for {parent}, which does not know"));
        }
        if status != SequenceStatus::Running && !seq.block_table.is_empty() {
            return Err(format!("{id} is {status:?} and holds blocks"));
        }
        if seq.num_computed_tokens != seq.block_table.num_tokens() {
            return Err(format!(
                "{id} has {} tokens computed, its blocks hold {}",
                seq.num_computed_tokens,
                seq.block_table.num_tokens()
            ));
        }
        if seq.num_computed_tokens > seq.num_tokens() || seq.num_tokens() > seq.max_len {
            return Err(format!(
                "{id} has {} tokens of {}, {} computed",
                seq.num_tokens(),
                seq.max_len,
                seq.num_computed_tokens
            ));
        }
        Ok(())
    }
}
