//! What a request took, in the OpenAI API's fields and scrimp's own.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Tokens of a request, over all its prompts and completions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompts, each counted once.
    pub prompt_tokens: usize,
    /// Tokens generated, thinking included.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// About the prompts.
    pub prompt_tokens_details: PromptTokensDetails,
    /// About the completions.
    pub completion_tokens_details: CompletionTokensDetails,
    /// Bytes and times; only once everything is generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrimp: Option<ScrimpUsage>,
}

/// About the prompts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Prompt tokens that were not computed again.
    pub cached_tokens: usize,
}

/// About the completions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionTokensDetails {
    /// Tokens of thinking.
    pub reasoning_tokens: usize,
}

/// What a request cost the server. Over several completions, bytes and preemptions are sums and
/// times are those of the slowest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ScrimpUsage {
    /// Most bytes of KV cache held at once.
    pub kv_cache_bytes: usize,
    /// Times the cache was taken away and recomputed.
    pub preemptions: usize,
    /// Seconds before the first step.
    pub queue_time_s: f64,
    /// Seconds from the first step to the first token.
    pub prefill_time_s: f64,
    /// Seconds from the first token to the last.
    pub decode_time_s: f64,
}

impl Usage {
    /// Counts without costs, as a stream knows them on its way.
    pub fn of_tokens(prompt: usize, cached: usize, completion: usize, reasoning: usize) -> Self {
        Usage {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt + completion,
            prompt_tokens_details: PromptTokensDetails {
                cached_tokens: cached,
            },
            completion_tokens_details: CompletionTokensDetails {
                reasoning_tokens: reasoning,
            },
            scrimp: None,
        }
    }
}
