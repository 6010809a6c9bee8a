//! Packed weights: which tensors a matrix is made of in each layout of quantized checkpoints,
//! whether they fit each other, and how they are brought into the one form that devices take.
//!
//! What is packed is seen from the tensors that are there, in how many bits and groups from their
//! shapes; [`Quantization`] says only what neither shows. Codes go to the device as they lie in
//! the file; scales and zero points, small beside them, are put in the order of the rows first.

use std::collections::HashSet;

use scrimp_backend::Backend;
use scrimp_model::Quantization;
use scrimp_tensor::{DType, Grouped, GroupedForm, MatrixView, PackedInts, Packing, TensorView};

use crate::weights::inventory::{Problem, TensorSource};
use crate::weights::spec::WeightSpec;
use crate::weights::store::EntryError;

/// A layout of packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// compressed-tensors' words, `[out, in]`.
    Words,
    /// compressed-tensors' signed bytes, `[out, in]`.
    Bytes,
    /// AWQ: `[in, out]`, interleaved along a row.
    Awq,
    /// GPTQ: `[in, out]`, packed along a column.
    Gptq {
        /// Whether stored zero points are one less than meant.
        zeros_less_one: bool,
    },
}

/// Ends of the names of a layout's tensors, in place of `weight`.
struct Names {
    codes: &'static str,
    scales: &'static str,
    zeros: &'static str,
    index: Option<&'static str>,
    /// Whether scales and zero points are `[groups, out]`.
    transposed: bool,
}

impl Layout {
    fn names(self) -> Names {
        match self {
            Layout::Words => Names {
                codes: "weight_packed",
                scales: "weight_scale",
                zeros: "weight_zero_point",
                index: Some("weight_g_idx"),
                transposed: false,
            },
            Layout::Bytes => Names {
                codes: "weight",
                index: None,
                ..Layout::Words.names()
            },
            Layout::Awq => Names {
                codes: "qweight",
                scales: "scales",
                zeros: "qzeros",
                index: None,
                transposed: true,
            },
            Layout::Gptq { .. } => Names {
                index: Some("g_idx"),
                ..Layout::Awq.names()
            },
        }
    }

    fn packing(self) -> Packing {
        match self {
            Layout::Words => Packing::Rows,
            Layout::Bytes => Packing::SignedBytes,
            Layout::Awq => Packing::Interleaved,
            Layout::Gptq { .. } => Packing::Columns,
        }
    }

    /// How zero points are packed, as `[rows, groups]` or `[groups, rows]`.
    fn zeros_packing(self) -> Packing {
        match self {
            Layout::Words => Packing::Columns,
            Layout::Bytes => Packing::SignedBytes,
            Layout::Awq => Packing::Interleaved,
            Layout::Gptq { .. } => Packing::Rows,
        }
    }

    /// What is added to every word of zero points to make them what they mean.
    ///
    /// GPTQ's first format stores one less. Its writers subtract from whole words, so that a zero
    /// point of 0 borrows from its neighbour; adding to whole words undoes that too.
    fn zeros_offset(self, bits: usize) -> u32 {
        match (self, bits) {
            (
                Layout::Gptq {
                    zeros_less_one: true,
                },
                4,
            ) => 0x1111_1111,
            (
                Layout::Gptq {
                    zeros_less_one: true,
                },
                _,
            ) => 0x0101_0101,
            _ => 0,
        }
    }

    fn codes_type(self) -> DType {
        match self {
            Layout::Bytes => DType::I8,
            _ => DType::I32,
        }
    }
}

/// A packed matrix that was held against its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) layout: Layout,
    pub(super) form: GroupedForm,
}

/// `model.layers.0.mlp.up_proj.` of `model.layers.0.mlp.up_proj.weight`.
fn base(name: &str) -> Option<&str> {
    name.strip_suffix("weight")
        .filter(|base| base.ends_with('.'))
}

/// The layout in which a weight is packed; `None` where it is not.
pub(super) fn find(
    name: &str,
    source: &impl TensorSource,
    quantization: Option<Quantization>,
) -> Result<Option<Layout>, Problem> {
    let Some(base) = base(name) else {
        return Ok(None);
    };
    let wrong = |packed: &str, why: &str| Problem::Packing {
        name: packed.to_owned(),
        why: why.to_owned(),
    };
    if let Some(plain) = source.tensor(name) {
        let compressed = matches!(quantization, Some(Quantization::CompressedTensors { .. }));
        return Ok((plain.dtype == DType::I8 && compressed).then_some(Layout::Bytes));
    }
    let words = format!("{base}weight_packed");
    if source.tensor(&words).is_some() {
        return match quantization {
            Some(Quantization::CompressedTensors { .. }) => Ok(Some(Layout::Words)),
            _ => Err(wrong(
                &words,
                "is packed as compressed-tensors does, but the quantization_config of config.json \
                 does not say so",
            )),
        };
    }
    let qweight = format!("{base}qweight");
    if source.tensor(&qweight).is_some() {
        return match quantization {
            Some(Quantization::Awq) => Ok(Some(Layout::Awq)),
            Some(Quantization::Gptq { zeros_less_one, .. }) => {
                Ok(Some(Layout::Gptq { zeros_less_one }))
            }
            _ => Err(wrong(
                &qweight,
                "is packed as AWQ or GPTQ do, but the quantization_config of config.json does not \
                 say which",
            )),
        };
    }
    Ok(None)
}

/// A matrix' parts as they are found, one by one.
struct Parts<'a, 's, T> {
    source: &'s T,
    base: &'a str,
    used: &'a mut HashSet<String>,
    stored_bytes: usize,
}

impl<'s, T: TensorSource> Parts<'_, 's, T> {
    fn optional(&mut self, end: &str) -> Option<(String, TensorView<'s>)> {
        let name = format!("{}{end}", self.base);
        let view = self.source.tensor(&name)?;
        self.used.insert(name.clone());
        self.stored_bytes += view.bytes.len();
        Some((name, view))
    }

    fn required(&mut self, end: &str) -> Result<(String, TensorView<'s>), Problem> {
        self.optional(end).ok_or_else(|| Problem::Missing {
            name: format!("{}{end}", self.base),
        })
    }
}

/// Whether a tensor is of a type and of extents.
fn expect(
    (name, view): &(String, TensorView<'_>),
    dtype: DType,
    extents: (usize, usize),
) -> Result<(), Problem> {
    if view.dtype != dtype {
        return Err(odd(
            name,
            format!("is stored as {}, not {dtype}", view.dtype),
        ));
    }
    let expected = vec![extents.0, extents.1];
    if view.shape != expected {
        return Err(Problem::Shape {
            name: name.clone(),
            expected,
            found: view.shape.clone(),
        });
    }
    Ok(())
}

fn odd(name: &str, why: String) -> Problem {
    Problem::Packing {
        name: name.to_owned(),
        why,
    }
}

/// Holds the parts of a packed matrix of `rows × cols` against each other; returns also the bytes
/// that they take in the file.
pub(super) fn check(
    spec: &WeightSpec,
    (rows, cols): (usize, usize),
    layout: Layout,
    source: &impl TensorSource,
    quantization: Option<Quantization>,
    used: &mut HashSet<String>,
) -> Result<(Packed, usize), Problem> {
    let names = layout.names();
    let mut parts = Parts {
        source,
        base: base(&spec.tensor).unwrap_or(&spec.tensor),
        used,
        stored_bytes: 0,
    };
    // Every part counts as used, whatever is wrong with another one.
    let codes = parts.required(names.codes)?;
    let scales = parts.required(names.scales);
    let zeros = parts.optional(names.zeros);
    let index = names.index.and_then(|name| parts.optional(name));
    let shape = match layout {
        Layout::Words => parts.optional("weight_shape"),
        _ => None,
    };
    let stored_bytes = parts.stored_bytes;
    let scales = scales?;

    let extents = |outs: usize, ins: usize, transposed| match transposed {
        true => (ins, outs),
        false => (outs, ins),
    };
    let in_file = extents(rows, cols, names.transposed);
    let stored = |bits| layout.packing().stored_extents(in_file, bits);
    let is_shape = |&bits: &usize| stored(bits).is_some_and(|(r, c)| codes.1.shape == [r, c]);
    let bits = [4, 8].into_iter().find(is_shape);
    let bits = bits.unwrap_or(if layout == Layout::Bytes { 8 } else { 4 });
    expect(&codes, layout.codes_type(), stored(bits).unwrap_or(in_file))?;
    if let Some(shape) = shape {
        check_stated_shape(&shape, rows, cols)?;
    }
    let groups = count_groups(&scales, rows, names.transposed)?;
    let group_size = group_size(&scales.0, cols, groups, layout, quantization)?;
    let form = GroupedForm {
        bits,
        group_size,
        scale: scales.1.dtype,
        zeros: match &zeros {
            Some(zeros) => {
                let extents = extents(rows, groups, names.transposed);
                let stored = layout.zeros_packing().stored_extents(extents, bits);
                expect(zeros, layout.codes_type(), stored.unwrap_or(extents))?;
                !all_in_the_middle(&zeros.1, layout, bits)
            }
            None if matches!(layout, Layout::Gptq { .. }) => {
                let name = format!("{}{}", base(&spec.tensor).unwrap_or(""), names.zeros);
                return Err(Problem::Missing { name });
            }
            None => false,
        },
        indexed: match &index {
            Some(index) => is_indexed(index, cols, group_size, groups)?,
            None => false,
        },
        int8_tokens: matches!(
            quantization,
            Some(Quantization::CompressedTensors { int8_tokens: true })
        ),
    };
    if form.int8_tokens && (form.indexed || !(group_size % 32 == 0 || group_size >= cols)) {
        let why = format!(
            "has groups of {group_size} of {cols} columns for int8 activations: these ask for \
             groups in order, of whole multiples of 32 columns or of whole rows"
        );
        return Err(odd(&scales.0, why));
    }
    Ok((Packed { layout, form }, stored_bytes))
}

/// `weight_shape` repeats what the config says; a file where it does not is not of this model.
fn check_stated_shape(
    (name, view): &(String, TensorView<'_>),
    rows: usize,
    cols: usize,
) -> Result<(), Problem> {
    let stated = match view.dtype {
        DType::I64 | DType::I32 => integers(view),
        _ => Vec::new(),
    };
    if stated == [rows as i64, cols as i64] {
        return Ok(());
    }
    Err(odd(
        name,
        format!("states the shape {stated:?}, but the config asks for [{rows}, {cols}]"),
    ))
}

/// Little-endian integers of four or eight bytes.
fn integers(view: &TensorView<'_>) -> Vec<i64> {
    let width = view.dtype.block_bytes();
    let value = |bytes: &[u8]| {
        let sign = if bytes[width - 1] & 0x80 == 0 {
            0
        } else {
            0xff
        };
        let mut wide = [sign; 8];
        wide[..width].copy_from_slice(bytes);
        i64::from_le_bytes(wide)
    };
    view.bytes.chunks_exact(width).map(value).collect()
}

/// Groups of a row, from the shape of the scales.
fn count_groups(
    (name, view): &(String, TensorView<'_>),
    rows: usize,
    transposed: bool,
) -> Result<usize, Problem> {
    if !matches!(view.dtype, DType::F16 | DType::BF16 | DType::F32) {
        let why = format!(
            "is stored as {}, but scales are F16, BF16 or F32",
            view.dtype
        );
        return Err(odd(name, why));
    }
    let groups = match (&view.shape[..], transposed) {
        (&[outs], false) if outs == rows => 1,
        (&[outs, groups], false) | (&[groups, outs], true) if outs == rows => groups,
        _ => 0,
    };
    if groups == 0 {
        let wanted = match transposed {
            true => format!("[groups, {rows}]"),
            false => format!("[{rows}, groups]"),
        };
        let why = format!("has shape {:?}, but scales have to be {wanted}", view.shape);
        return Err(odd(name, why));
    }
    Ok(groups)
}

/// Columns that share a scale.
fn group_size(
    scales: &str,
    cols: usize,
    groups: usize,
    layout: Layout,
    quantization: Option<Quantization>,
) -> Result<usize, Problem> {
    // GPTQ alone cuts a last group short, and then only its config tells the size.
    if let (Layout::Gptq { .. }, Some(Quantization::Gptq { group_size, .. })) =
        (layout, quantization)
    {
        let size = group_size.unwrap_or(cols).max(1);
        if cols.div_ceil(size) == groups {
            return Ok(size);
        }
    }
    if !cols.is_multiple_of(groups) {
        let why = format!("has scales for {groups} groups, which do not divide {cols} columns");
        return Err(odd(scales, why));
    }
    Ok(cols / groups)
}

/// Whether every zero point is the middle of its codes, as symmetric GPTQ files store them.
fn all_in_the_middle(zeros: &TensorView<'_>, layout: Layout, bits: usize) -> bool {
    let middle = match (layout, bits) {
        (Layout::Bytes, _) => 0, // signed
        (_, 4) => 0x88,
        _ => 0x80,
    };
    let byte = layout.zeros_offset(bits).to_le_bytes()[0];
    zeros.bytes.iter().all(|&b| b.wrapping_add(byte) == middle)
}

/// Whether columns have to be looked up in the index; `false` where it says what order says.
fn is_indexed(
    (name, view): &(String, TensorView<'_>),
    cols: usize,
    group_size: usize,
    groups: usize,
) -> Result<bool, Problem> {
    if view.dtype != DType::I32 || view.shape != [cols] {
        let (dtype, shape) = (view.dtype, &view.shape);
        let why = format!("is {dtype} {shape:?}, but group indices have to be I32 [{cols}]");
        return Err(odd(name, why));
    }
    let index = integers(view);
    // compressed-tensors' way to say that there is no order.
    if index.iter().all(|&g| g == -1) {
        return Ok(false);
    }
    let outside = |g: &&i64| !(0..groups as i64).contains(*g);
    if let Some(g) = index.iter().find(outside) {
        return Err(odd(name, format!("names group {g} of {groups}")));
    }
    let in_order = index
        .iter()
        .enumerate()
        .all(|(k, &g)| g as usize == k / group_size);
    Ok(!in_order)
}

/// Puts a packed matrix of `rows × cols` on the device.
pub(super) fn load<B: Backend>(
    tensor: &str,
    (rows, cols): (usize, usize),
    packed: Packed,
    source: &impl TensorSource,
    backend: &mut B,
) -> Result<B::Matrix, EntryError> {
    let Packed { layout, form } = packed;
    let names = layout.names();
    let base = base(tensor).ok_or(EntryError::Vanished)?;
    let part = |end: &str| {
        let view = source.tensor(&format!("{base}{end}"));
        view.ok_or(EntryError::Vanished)
    };
    let groups = form.groups(cols);
    let scales = scales_by_row(&part(names.scales)?, (rows, groups), names.transposed)?;
    if !scales.iter().all(|scale| scale.is_finite()) {
        return Err(EntryError::Damaged(
            "some of its scales are no finite numbers",
        ));
    }
    let zeros = match form.zeros {
        true => zeros_by_row(&part(names.zeros)?, (rows, groups), packed)?,
        false => Vec::new(),
    };
    let index = match (form.indexed, names.index) {
        (true, Some(name)) => integers(&part(name)?).iter().map(|&g| g as u32).collect(),
        _ => Vec::new(),
    };
    let extents = match names.transposed {
        true => (cols, rows),
        false => (rows, cols),
    };
    let codes = part(names.codes)?;
    let grouped = Grouped {
        form,
        codes: PackedInts::new(codes.bytes, extents, form.bits, layout.packing())?,
        transposed: names.transposed,
        first_row: 0,
        scales: &scales,
        zeros: &zeros,
        index: &index,
        groups,
    };
    Ok(backend.load_matrix(&MatrixView::from_grouped(rows, cols, grouped)?)?)
}

/// Lets go of the pages that a packed matrix was read through.
pub(super) fn release(tensor: &str, packed: Packed, source: &impl TensorSource) {
    let names = packed.layout.names();
    let base = base(tensor).unwrap_or(tensor);
    let ends = [
        Some(names.codes),
        Some(names.scales),
        Some(names.zeros),
        names.index,
    ];
    for end in ends.into_iter().flatten() {
        source.release(&format!("{base}{end}"));
    }
}

impl Packed {
    /// Bytes that [`load`] holds for a matrix of `rows × cols` besides what is in the file: scales
    /// (as they are stored and by row), zero points (as words and by row), indices.
    pub(super) fn staging_bytes(&self, rows: usize, cols: usize) -> usize {
        let per_group = 8 + if self.form.zeros { 2 } else { 0 };
        let index = if self.form.indexed { 12 * cols } else { 0 };
        rows * self.form.groups(cols) * per_group + index
    }
}

/// Scales as `[rows, groups]`.
fn scales_by_row(
    view: &TensorView<'_>,
    (rows, groups): (usize, usize),
    transposed: bool,
) -> Result<Vec<f32>, EntryError> {
    let stored = view.to_f32()?;
    if !transposed {
        return Ok(stored);
    }
    let mut by_row = vec![0.0; stored.len()];
    for (group, scales) in stored.chunks_exact(rows.max(1)).enumerate() {
        for (row, &scale) in scales.iter().enumerate() {
            by_row[row * groups + group] = scale;
        }
    }
    Ok(by_row)
}

/// Zero points as `[rows, groups]`.
fn zeros_by_row(
    view: &TensorView<'_>,
    (rows, groups): (usize, usize),
    Packed { layout, form }: Packed,
) -> Result<Vec<u8>, EntryError> {
    let offset = layout.zeros_offset(form.bits);
    let words = view.bytes.chunks_exact(4);
    let moved: Vec<u8> = words
        .flat_map(|w| {
            let word = u32::from_le_bytes([w[0], w[1], w[2], w[3]]);
            word.wrapping_add(offset).to_le_bytes()
        })
        .collect();
    let bytes = if offset == 0 { view.bytes } else { &moved };
    let transposed = layout.names().transposed;
    let extents = match transposed {
        true => (groups, rows),
        false => (rows, groups),
    };
    let zeros = PackedInts::new(bytes, extents, form.bits, layout.zeros_packing())?;
    Ok(zeros.to_codes(transposed))
}
