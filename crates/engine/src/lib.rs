//! From requests to text: weights, the decoder, the sampler, and the loop that runs them.
//!
//! The engine is generic over [`scrimp_backend::Backend`]: it names no device, no instruction set
//! and no weight format. It is one thread that owns the model and the cache; everybody else holds
//! an [`EngineHandle`].

pub mod batch;
mod completion;
pub mod decoder;
mod engine;
mod handle;
mod params;
mod recorder;
mod request;
pub mod runner;
pub mod sampler;
pub mod weights;

pub use engine::{EngineParts, StepModel, start};
pub use handle::{
    Command, EngineEnd, EngineHandle, EngineInfo, EngineStats, EventSink, RequestId, StepObserver,
    StepReport,
};
pub use params::{MAX_LOGPROBS, SamplingError, SamplingParams};
pub use recorder::{Part, StepCosts};
pub use request::{
    Delta, Event, Finished, GenerateRequest, Reasoning, RequestError, TokenInfo, TokenLogprobs,
    Update, Usage,
};
pub use scrimp_scheduler::FinishReason;
