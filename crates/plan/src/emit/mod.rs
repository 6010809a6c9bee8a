//! The command line or manifest that runs a plan on an engine.
//!
//! Says only what the plan decided: what it left to the engine stays the engine's default. Flags
//! are held against lists taken from the engines' own parsers (`flags/`), in tests here and, with
//! the parsers themselves, by `tools/peers/check_flags.py`.

mod command;
mod kubernetes;
mod llama_cpp;
mod scrimp;
mod sglang;
mod vllm;

pub use command::Command;

use crate::remedy::Evaluated;
use crate::{EngineKind, Error, ModelShape, WeightScheme};

/// What can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// `vllm serve`.
    Vllm,
    /// `python -m sglang.launch_server`.
    Sglang,
    /// `llama-server`.
    LlamaCpp,
    /// SGLang with KTransformers' experts on the host.
    Ktransformers,
    /// `scrimp serve`.
    Scrimp,
    /// A manifest for the plan's own engine.
    Kubernetes,
}

const TARGETS: [(&str, Target); 6] = [
    ("vllm", Target::Vllm),
    ("sglang", Target::Sglang),
    ("llama.cpp", Target::LlamaCpp),
    ("ktransformers", Target::Ktransformers),
    ("scrimp", Target::Scrimp),
    ("kubernetes", Target::Kubernetes),
];

impl Target {
    /// Reads `vllm`, `sglang`, `llama.cpp`, `ktransformers`, `scrimp` or `kubernetes`.
    ///
    /// # Errors
    /// None of these.
    pub fn parse(name: &str) -> Result<Target, Error> {
        let wanted = name.to_ascii_lowercase();
        let found = TARGETS.iter().find(|(known, _)| *known == wanted);
        found
            .map(|(_, target)| *target)
            .ok_or_else(|| Error::Unknown {
                kind: "output",
                name: name.to_owned(),
                nearest: TARGETS.map(|(known, _)| known).join(", "),
            })
    }

    /// The engine whose rules such a plan follows; `None` where it is up to the plan.
    pub fn engine(self) -> Option<EngineKind> {
        match self {
            Target::Vllm => Some(EngineKind::Vllm),
            Target::Sglang | Target::Ktransformers => Some(EngineKind::Sglang),
            Target::LlamaCpp => Some(EngineKind::LlamaCpp),
            Target::Scrimp => Some(EngineKind::Scrimp),
            Target::Kubernetes => None,
        }
    }
}

/// Writes what runs the plan of `model` (as a person or an engine names it).
///
/// # Errors
/// When the target cannot run such a plan.
pub fn emit(
    target: Target,
    model: &str,
    shape: &ModelShape,
    plan: &Evaluated,
) -> Result<String, Error> {
    let planned = plan.setup.deployment.engine.kind;
    if let Some(engine) = target.engine()
        && engine != planned
    {
        return Err(Error::Setting {
            setting: "--emit",
            what: format!(
                "this plan follows the rules of {}; add --engine {}",
                planned.name(),
                engine.name()
            ),
        });
    }
    match target {
        Target::Kubernetes => kubernetes::manifest(model, shape, plan),
        _ => Ok(commands(target, model, shape, plan)?
            .iter()
            .map(Command::script)
            .collect::<Vec<_>>()
            .join("\n")),
    }
}

/// The commands that [`emit`] writes, node by node.
///
/// # Errors
/// As [`emit`].
pub fn commands(
    target: Target,
    model: &str,
    shape: &ModelShape,
    plan: &Evaluated,
) -> Result<Vec<Command>, Error> {
    match target {
        Target::Vllm => Ok(vllm::commands(model, shape, plan)),
        Target::Sglang => Ok(sglang::commands(model, shape, plan, false)),
        Target::Ktransformers => Ok(sglang::commands(model, shape, plan, true)),
        Target::LlamaCpp => Ok(vec![llama_cpp::command(model, shape, plan)]),
        Target::Scrimp => Ok(vec![scrimp::command(model, plan)]),
        Target::Kubernetes => match planned_target(plan) {
            Some(target) => commands(target, model, shape, plan),
            None => Err(Error::Setting {
                setting: "--emit",
                what: "no command is known for TensorRT-LLM: plan for vllm, sglang or llama.cpp"
                    .to_owned(),
            }),
        },
    }
}

fn planned_target(plan: &Evaluated) -> Option<Target> {
    match plan.setup.deployment.engine.kind {
        EngineKind::Vllm => Some(Target::Vllm),
        EngineKind::Sglang => Some(Target::Sglang),
        EngineKind::LlamaCpp => Some(Target::LlamaCpp),
        EngineKind::Scrimp => Some(Target::Scrimp),
        EngineKind::TrtLlm => None,
    }
}

/// The checkpoint to load: the model, or one of it in the plan's weight format.
fn checkpoint(model: &str, scheme: &WeightScheme) -> String {
    match scheme {
        WeightScheme::Released => model.to_owned(),
        other => {
            let name = model
                .trim_end_matches('/')
                .rsplit('/')
                .next()
                .unwrap_or(model);
            format!("./{name}-{}", other.label().replace(':', "-"))
        }
    }
}

/// How engines call the way a model marks its thinking.
fn reasoning_parser(shape: &ModelShape) -> Option<&'static str> {
    let name = shape.name.to_ascii_lowercase();
    let known = [
        ("r1", "deepseek_r1"),
        ("qwq", "deepseek_r1"),
        ("qwen3", "qwen3"),
        ("glm-4.5", "glm45"),
        ("glm-4.6", "glm45"),
        ("kimi-k2", "kimi_k2"),
        ("gpt-oss", "openai_gptoss"),
    ];
    known
        .iter()
        .find(|(part, _)| name.contains(part))
        .map(|(_, parser)| *parser)
}

/// Devices of a plan that are in use, and how many nodes they are on.
fn nodes(plan: &Evaluated) -> u64 {
    let deployment = &plan.setup.deployment;
    let per_node = u64::from(deployment.devices_per_node.max(1));
    deployment.parallel.devices().div_ceil(per_node).max(1)
}

#[cfg(test)]
mod tests;
