//! What is wanted of a quantization: scheme, group, format, and what stays as it is.

use std::fmt;
use std::str::FromStr;

use regex::RegexSet;
use scrimp_tensor::DType;
use serde::{Deserialize, Serialize};

use crate::grid::GridSpec;
use crate::source::{Role, SourceTensor};

/// How weights become codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scheme {
    /// 8 bits, rounded to nearest.
    #[serde(rename = "int8")]
    Int8,
    /// 8 bits per output channel, for activations rounded to 8 bits a token.
    #[serde(rename = "int8-a8")]
    Int8A8,
    /// 4 bits, rounded to nearest with a searched range.
    #[serde(rename = "int4-rtn")]
    Int4Rtn,
    /// 4 bits by GPTQ (arXiv 2210.17323).
    #[serde(rename = "int4-gptq")]
    Int4Gptq,
    /// 4 bits by AWQ (arXiv 2306.00978).
    #[serde(rename = "int4-awq")]
    Int4Awq,
    /// AWQ's scales, then GPTQ's rounding.
    #[serde(rename = "int4-awq-gptq")]
    Int4AwqGptq,
}

impl Scheme {
    /// Every scheme, cheapest first.
    pub const ALL: [Scheme; 6] = [
        Scheme::Int8,
        Scheme::Int8A8,
        Scheme::Int4Rtn,
        Scheme::Int4Gptq,
        Scheme::Int4Awq,
        Scheme::Int4AwqGptq,
    ];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Int8 => "int8",
            Scheme::Int8A8 => "int8-a8",
            Scheme::Int4Rtn => "int4-rtn",
            Scheme::Int4Gptq => "int4-gptq",
            Scheme::Int4Awq => "int4-awq",
            Scheme::Int4AwqGptq => "int4-awq-gptq",
        }
    }

    /// Bits of a code.
    pub fn bits(self) -> u32 {
        match self {
            Scheme::Int8 | Scheme::Int8A8 => 8,
            _ => 4,
        }
    }

    /// Whether input channels are scaled before rounding.
    pub fn scales_channels(self) -> bool {
        matches!(self, Scheme::Int4Awq | Scheme::Int4AwqGptq)
    }

    /// Whether rounding errors are carried on to later columns.
    pub fn carries_errors(self) -> bool {
        matches!(self, Scheme::Int4Gptq | Scheme::Int4AwqGptq)
    }

    /// Whether it cannot do without calibration tokens.
    pub fn needs_calibration(self) -> bool {
        self.scales_channels() || self.carries_errors()
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scheme {
    type Err = RecipeError;

    fn from_str(text: &str) -> Result<Scheme, RecipeError> {
        let found = Scheme::ALL.into_iter().find(|s| s.name() == text);
        found.ok_or_else(|| RecipeError::UnknownScheme { name: text.into() })
    }
}

/// How codes are laid out in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// `compressed-tensors`: `pack-quantized`, or `int-quantized` for int8-a8.
    #[serde(rename = "compressed-tensors")]
    CompressedTensors,
    /// AutoAWQ's `gemm` layout.
    #[serde(rename = "awq")]
    Awq,
    /// GPTQ's layout, version 1.
    #[serde(rename = "gptq")]
    Gptq,
    /// One GGUF file, in blocks of [`GGUF_GROUP`] values: Q4_0, Q4_1 or Q8_0.
    #[serde(rename = "gguf")]
    Gguf,
}

/// Inputs that share a scale in GGUF's blocks.
pub const GGUF_GROUP: usize = 32;

impl Format {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Format::CompressedTensors => "compressed-tensors",
            Format::Awq => "awq",
            Format::Gptq => "gptq",
            Format::Gguf => "gguf",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What cannot be wanted together.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum RecipeError {
    #[error(
        "{name:?} is no scheme; there are int8, int8-a8, int4-rtn, int4-gptq, int4-awq and int4-awq-gptq"
    )]
    UnknownScheme { name: String },
    #[error(
        "the {format} format holds {holds} alone, not {scheme}: use --format compressed-tensors"
    )]
    FormatScheme {
        format: Format,
        scheme: Scheme,
        holds: &'static str,
    },
    #[error(
        "GGUF's blocks have {GGUF_GROUP} inputs to a scale, not {found}: pass --group-size {GGUF_GROUP}, or leave it out"
    )]
    GgufGroup { found: String },
    #[error(
        "GGUF's blocks have {GGUF_GROUP} inputs, which does not divide the {cols} of {tensor}: keep it with --ignore, or use --format compressed-tensors"
    )]
    GgufBlock { tensor: String, cols: usize },
    #[error(
        "a GGUF file says nothing of activations in 8 bits, whose rounding is its readers' own affair: use --scheme int8, or --format compressed-tensors"
    )]
    GgufActivations,
    #[error(
        "GGUF has blocks of 8-bit codes without a zero point alone: leave --asymmetric out, or use 4 bits"
    )]
    GgufAsymmetric,
    #[error(
        "{stack} of a GGUF file holds all experts in one type, but only some of them are to be quantized: have --ignore match all or none"
    )]
    MixedStack { stack: String },
    #[error("GGUF cannot hold this model: {why}")]
    Gguf { why: String },
    #[error("int8-a8 has one scale a channel: leave --group-size out")]
    GroupedActivations,
    #[error("int8-a8 is symmetric: leave --asymmetric out")]
    AsymmetricActivations,
    #[error(
        "a group of {group} does not divide the {cols} inputs of {tensor}; these divide every row that is quantized: {fitting}"
    )]
    Group {
        group: usize,
        cols: usize,
        tensor: String,
        fitting: String,
    },
    #[error(
        "{tensor} has {rows} outputs by {cols} inputs, and the {format} format packs eight {which} into a word: keep it with --ignore, or use --format compressed-tensors"
    )]
    Packing {
        tensor: String,
        rows: usize,
        cols: usize,
        format: Format,
        which: &'static str,
    },
    #[error("--ignore: {0}")]
    Pattern(#[from] regex::Error),
    #[error("nothing is left to quantize: {why}")]
    Nothing { why: &'static str },
    #[error("a group size of 0: give a number of inputs, or -1 for one group a row")]
    ZeroGroup,
}

/// A quantization as it is wanted. What decides the output's bytes is all in here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// How weights become codes.
    pub scheme: Scheme,
    /// Inputs that share a scale; `None`: all of a row.
    pub group_size: Option<usize>,
    /// Whether grids have zero points of their own.
    #[serde(default)]
    pub asymmetric: bool,
    /// How codes are laid out.
    #[serde(default = "default_format")]
    pub format: Format,
    /// Patterns of modules that stay in floats.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// Whether routed experts alone are quantized.
    #[serde(default)]
    pub experts_only: bool,
}

fn default_format() -> Format {
    Format::CompressedTensors
}

impl Recipe {
    /// A scheme with its customary group: 128 for 4 bits, the whole row for 8.
    pub fn new(scheme: Scheme) -> Recipe {
        Recipe {
            scheme,
            group_size: (scheme.bits() == 4).then_some(128),
            asymmetric: false,
            format: Format::CompressedTensors,
            ignore: Vec::new(),
            experts_only: false,
        }
    }

    /// Grids of this recipe for a model whose floats are `dtype`.
    pub fn grid_spec(&self, dtype: DType) -> GridSpec {
        GridSpec {
            bits: self.scheme.bits(),
            symmetric: !self.asymmetric,
            // Q4_0's scale has a sign; other formats' readers take it for positive.
            signed: self.format == Format::Gguf && self.scheme.bits() == 4,
            // Version 1 stores the zero point less one, which readers disagree about for 0.
            zero_min: u8::from(self.format == Format::Gptq),
            scale: match self.format {
                Format::CompressedTensors => dtype,
                Format::Awq | Format::Gptq | Format::Gguf => DType::F16,
            },
        }
    }

    /// Which of `tensors` become codes, `true` for each that does.
    ///
    /// # Errors
    /// When the recipe contradicts itself, or does not fit one of the tensors.
    pub fn select(&self, tensors: &[SourceTensor]) -> Result<Vec<bool>, RecipeError> {
        self.check()?;
        let ignored = RegexSet::new(&self.ignore)?;
        let wanted = |t: &SourceTensor| {
            t.role.is_linear()
                && (!self.experts_only || t.role.is_routed_expert())
                && !ignored.is_match(t.module())
        };
        let chosen: Vec<bool> = tensors.iter().map(wanted).collect();
        let picked = || {
            tensors
                .iter()
                .zip(&chosen)
                .filter(|(_, c)| **c)
                .map(|(t, _)| t)
        };
        if picked().next().is_none() {
            let why = match self.experts_only {
                true => "the model has no experts, or all are ignored",
                false => "every linear layer is ignored",
            };
            return Err(RecipeError::Nothing { why });
        }
        for tensor in picked() {
            self.check_tensor(tensor, || fitting_groups(picked().map(SourceTensor::cols)))?;
        }
        Ok(chosen)
    }

    fn check(&self) -> Result<(), RecipeError> {
        let format = |holds| RecipeError::FormatScheme {
            format: self.format,
            scheme: self.scheme,
            holds,
        };
        match self.format {
            Format::Awq | Format::Gptq if self.scheme.bits() != 4 => return Err(format("4 bits")),
            Format::Gguf => self.check_gguf()?,
            _ => {}
        }
        if self.group_size == Some(0) {
            return Err(RecipeError::ZeroGroup);
        }
        if self.scheme == Scheme::Int8A8 {
            if self.group_size.is_some() {
                return Err(RecipeError::GroupedActivations);
            }
            if self.asymmetric {
                return Err(RecipeError::AsymmetricActivations);
            }
        }
        Ok(())
    }

    fn check_gguf(&self) -> Result<(), RecipeError> {
        if self.scheme == Scheme::Int8A8 {
            return Err(RecipeError::GgufActivations);
        }
        if self.asymmetric && self.scheme.bits() == 8 {
            return Err(RecipeError::GgufAsymmetric);
        }
        let found = match self.group_size {
            Some(GGUF_GROUP) => return Ok(()),
            Some(group) => group.to_string(),
            None => "all of a row".to_owned(),
        };
        Err(RecipeError::GgufGroup { found })
    }

    fn check_tensor(
        &self,
        tensor: &SourceTensor,
        fitting: impl Fn() -> String,
    ) -> Result<(), RecipeError> {
        let (rows, cols) = (tensor.rows(), tensor.cols());
        if self.format == Format::Gguf && !cols.is_multiple_of(GGUF_GROUP) {
            let tensor = tensor.module().into();
            return Err(RecipeError::GgufBlock { tensor, cols });
        }
        if let Some(group) = self.group_size
            && !cols.is_multiple_of(group)
        {
            return Err(RecipeError::Group {
                group,
                cols,
                tensor: tensor.module().into(),
                fitting: fitting(),
            });
        }
        let packing = |which| RecipeError::Packing {
            tensor: tensor.module().into(),
            rows,
            cols,
            format: self.format,
            which,
        };
        match self.format {
            Format::Awq | Format::Gptq if !rows.is_multiple_of(8) => Err(packing("outputs")),
            Format::Gptq if !cols.is_multiple_of(8) => Err(packing("inputs")),
            _ => Ok(()),
        }
    }
}

/// Group sizes that divide every row, largest first, as text.
fn fitting_groups(cols: impl Iterator<Item = usize>) -> String {
    let common = cols.fold(0, gcd);
    let mut fitting: Vec<usize> = (1..=common.min(1024))
        .filter(|g| common.is_multiple_of(*g))
        .collect();
    fitting.reverse();
    fitting.truncate(12);
    let text: Vec<String> = fitting.iter().map(usize::to_string).collect();
    format!("{}, or -1 for one group a row", text.join(", "))
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Role {
    /// Whether it is a routed expert's projection.
    pub fn is_routed_expert(self) -> bool {
        matches!(self, Role::ExpertGate | Role::ExpertUp | Role::ExpertDown)
    }

    /// Whether it is a projection that may be quantized. `kv_b_proj` is not: its readers multiply
    /// it into other matrices, and break on codes.
    pub fn is_linear(self) -> bool {
        matches!(
            self,
            Role::Q
                | Role::K
                | Role::V
                | Role::O
                | Role::QA
                | Role::QB
                | Role::KvA
                | Role::Gate
                | Role::Up
                | Role::Down
                | Role::SharedGate
                | Role::SharedUp
                | Role::SharedDown
        ) || self.is_routed_expert()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(module: &str, rows: usize, cols: usize, role: Role) -> SourceTensor {
        SourceTensor {
            name: format!("{module}.weight"),
            role,
            layer: Some(0),
            expert: None,
            shape: vec![rows, cols],
            dtype: DType::BF16,
        }
    }

    #[test]
    fn a_group_that_does_not_divide_is_refused_with_those_that_do() {
        let tensors = [
            linear("a.q_proj", 576, 576, Role::Q),
            linear("a.down_proj", 576, 1536, Role::Down),
        ];
        let error = Recipe::new(Scheme::Int4Rtn).select(&tensors).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("128 does not divide the 576"), "{text}");
        assert!(text.contains(": 192, 96, 64, 48,"), "{text}");
    }

    #[test]
    fn what_stays_is_what_the_recipe_says() {
        let tensors = [
            linear("m.q_proj", 8, 128, Role::Q),
            linear("m.kv_b_proj", 8, 128, Role::KvB),
            linear("m.experts.0.up_proj", 8, 128, Role::ExpertUp),
            linear("lm_head", 8, 128, Role::Head),
        ];
        let mut recipe = Recipe::new(Scheme::Int4Gptq);
        assert_eq!(recipe.select(&tensors).unwrap(), [true, false, true, false]);
        recipe.ignore = vec!["q_proj$".into()];
        assert_eq!(
            recipe.select(&tensors).unwrap(),
            [false, false, true, false]
        );
        recipe.ignore.clear();
        recipe.experts_only = true;
        assert_eq!(
            recipe.select(&tensors).unwrap(),
            [false, false, true, false]
        );
        recipe.ignore = vec!["proj".into()];
        assert!(matches!(
            recipe.select(&tensors),
            Err(RecipeError::Nothing { .. })
        ));
        recipe.ignore = vec!["(".into()];
        assert!(matches!(
            recipe.select(&tensors),
            Err(RecipeError::Pattern(_))
        ));
    }

    #[test]
    fn contradictions_are_refused() {
        let tensors = [linear("q", 12, 128, Role::Q)];
        let mut recipe = Recipe::new(Scheme::Int8);
        recipe.format = Format::Awq;
        assert!(matches!(
            recipe.select(&tensors),
            Err(RecipeError::FormatScheme { .. })
        ));
        let mut recipe = Recipe::new(Scheme::Int4Awq);
        recipe.format = Format::Awq;
        assert!(matches!(
            recipe.select(&tensors),
            Err(RecipeError::Packing { .. })
        ));
        let refused = |scheme, group, asymmetric| {
            let recipe = Recipe {
                format: Format::Gguf,
                group_size: group,
                asymmetric,
                ..Recipe::new(scheme)
            };
            recipe.select(&tensors).unwrap_err().to_string()
        };
        assert!(refused(Scheme::Int4Rtn, Some(64), false).contains("--group-size 32"));
        assert!(refused(Scheme::Int8, None, false).contains("not all of a row"));
        assert!(refused(Scheme::Int8, Some(32), true).contains("--asymmetric"));
        assert!(refused(Scheme::Int8A8, None, false).contains("--scheme int8"));
        let mut recipe = Recipe::new(Scheme::Int8A8);
        recipe.group_size = Some(64);
        assert!(matches!(
            recipe.select(&tensors),
            Err(RecipeError::GroupedActivations)
        ));
    }
}
