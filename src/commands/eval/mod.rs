//! `scrimp eval`: what a model can still do, measured.

mod documents;
mod reasoning;
mod text;

use anyhow::Result;

use crate::args::EvalArgs;

/// Measures what the arguments ask for.
pub fn eval(args: &EvalArgs) -> Result<()> {
    match &args.text {
        Some(path) => text::eval(args, path),
        None => reasoning::eval(args),
    }
}
