//! The kernels of one level, as plain function pointers.

use half::{bf16, f16};
use scrimp_tensor::DType;

use crate::bandwidth::{Touch, TouchArgs};
use crate::formats::Decode;
use crate::formats::blocks32::{Iq4Nl, Mxfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use crate::formats::float::{Bf16, F8E4M3, F16, F32};
use crate::formats::grouped::Group;
use crate::formats::k_quants::{Q2K, Q3K, Q4K, Q5K, Q6K};
use crate::kernels::activations::{Rows, ToBf16, ToFloat, ToInt8Tokens, ToInts};
use crate::kernels::attention::{Attend, Attention, Merge, MergeArgs};
use crate::kernels::element::Element;
use crate::kernels::elementwise::{
    Load, LoadArgs, NormSegments, NormSegmentsArgs, Rope, RopeArgs, SiluMul, SiluMulArgs, Store,
    StoreArgs, WeightedSum, WeightedSumArgs,
};
use crate::kernels::gemm::Gemm;
use crate::kernels::gemm_bf16::GemmBf16;
use crate::kernels::gemm_float::GemmFloat;
use crate::kernels::gemm_group::GemmGroup;
use crate::kernels::gemm_int::GemmInt;
use crate::kernels::heads::{Row, RowArgs, Transposed, TransposedArgs};
use crate::level::CpuLevel;
#[cfg(target_arch = "x86_64")]
use crate::level::has_avx512_bf16;
use crate::matrix::{FORMATS, Format};
#[cfg(target_arch = "x86_64")]
use crate::simd::avx2::Avx2Level;
#[cfg(target_arch = "x86_64")]
use crate::simd::avx512::{Avx512Bf16Level, Avx512Level};
use crate::simd::portable::PortableLevel;
use crate::simd::{KernelFn, Level};

/// What is computed with one weight format.
#[derive(Clone, Copy)]
pub(crate) struct FormatKernels {
    /// f32 activations.
    pub(crate) gemm_float: KernelFn<Gemm>,
    /// Integer activations of one term and of two, where there are kernels for them: for block
    /// formats both, for grouped ones the first.
    pub(crate) gemm_int: [Option<KernelFn<Gemm>>; 2],
    pub(crate) row: KernelFn<RowArgs>,
    pub(crate) transposed: KernelFn<TransposedArgs>,
}

/// What is computed with one cache type.
#[derive(Clone, Copy)]
pub(crate) struct KvKernels {
    pub(crate) attend: KernelFn<Attention>,
    pub(crate) store: KernelFn<StoreArgs>,
    pub(crate) load: KernelFn<LoadArgs>,
}

/// Every kernel of a level.
pub(crate) struct KernelTable {
    /// In the order of [`Format`].
    formats: [FormatKernels; FORMATS],
    /// BF16 activations against BF16 weights, where that is faster than f32.
    pub(crate) gemm_bf16: Option<KernelFn<Gemm>>,
    kv_f32: KvKernels,
    kv_f16: KvKernels,
    kv_bf16: KvKernels,
    pub(crate) merge: KernelFn<MergeArgs>,
    pub(crate) to_float: KernelFn<Rows>,
    /// Of one term and of two.
    pub(crate) to_ints: [KernelFn<Rows>; 2],
    pub(crate) to_int8_tokens: KernelFn<Rows>,
    pub(crate) to_bf16: KernelFn<Rows>,
    pub(crate) norm_segments: KernelFn<NormSegmentsArgs>,
    pub(crate) rope: KernelFn<RopeArgs>,
    pub(crate) silu_mul: KernelFn<SiluMulArgs>,
    pub(crate) weighted_sum: KernelFn<WeightedSumArgs>,
    pub(crate) touch: KernelFn<TouchArgs>,
}

fn float_format<L: Level, D: Decode>() -> FormatKernels {
    FormatKernels {
        gemm_float: L::shell::<GemmFloat<D>>(),
        gemm_int: [None; 2],
        row: L::shell::<Row<D>>(),
        transposed: L::shell::<Transposed<D>>(),
    }
}

fn block_format<L: Level, Q: crate::formats::QuantFormat>() -> FormatKernels {
    FormatKernels {
        gemm_int: [
            Some(L::shell::<GemmInt<Q, 1>>()),
            Some(L::shell::<GemmInt<Q, 2>>()),
        ],
        ..float_format::<L, Q>()
    }
}

fn group_format<L: Level, const BITS: usize>() -> FormatKernels {
    FormatKernels {
        gemm_int: [Some(L::shell::<GemmGroup<BITS>>()), None],
        ..float_format::<L, Group<BITS>>()
    }
}

fn kv<L: Level, E: Element>() -> KvKernels {
    KvKernels {
        attend: L::shell::<Attend<E>>(),
        store: L::shell::<Store<E>>(),
        load: L::shell::<Load<E>>(),
    }
}

impl KernelTable {
    fn of<L: Level>() -> KernelTable {
        KernelTable {
            formats: [
                float_format::<L, F32>(),
                float_format::<L, F16>(),
                float_format::<L, Bf16>(),
                float_format::<L, F8E4M3>(),
                block_format::<L, Q4_0>(),
                block_format::<L, Q4_1>(),
                block_format::<L, Q5_0>(),
                block_format::<L, Q5_1>(),
                block_format::<L, Q8_0>(),
                block_format::<L, Iq4Nl>(),
                block_format::<L, Mxfp4>(),
                block_format::<L, Q2K>(),
                block_format::<L, Q3K>(),
                block_format::<L, Q4K>(),
                block_format::<L, Q5K>(),
                block_format::<L, Q6K>(),
                group_format::<L, 4>(),
                group_format::<L, 8>(),
            ],
            gemm_bf16: None,
            kv_f32: kv::<L, f32>(),
            kv_f16: kv::<L, f16>(),
            kv_bf16: kv::<L, bf16>(),
            merge: L::shell::<Merge>(),
            to_float: L::shell::<ToFloat>(),
            to_ints: [L::shell::<ToInts<1>>(), L::shell::<ToInts<2>>()],
            to_int8_tokens: L::shell::<ToInt8Tokens>(),
            to_bf16: L::shell::<ToBf16>(),
            norm_segments: L::shell::<NormSegments>(),
            rope: L::shell::<Rope>(),
            silu_mul: L::shell::<SiluMul>(),
            weighted_sum: L::shell::<WeightedSum>(),
            touch: L::shell::<Touch>(),
        }
    }

    /// The kernels of a level, where this machine has it.
    pub(crate) fn for_level(level: CpuLevel) -> Option<KernelTable> {
        if !level.is_available() {
            return None;
        }
        match level {
            CpuLevel::Portable => Some(KernelTable::of::<PortableLevel<false>>()),
            #[cfg(target_arch = "x86_64")]
            CpuLevel::Avx2 => Some(KernelTable::of::<Avx2Level>()),
            #[cfg(target_arch = "x86_64")]
            CpuLevel::Avx512 => Some(KernelTable {
                gemm_bf16: has_avx512_bf16().then(Avx512Bf16Level::shell::<GemmBf16>),
                ..KernelTable::of::<Avx512Level>()
            }),
            #[cfg(target_arch = "aarch64")]
            CpuLevel::Neon => Some(KernelTable::of::<PortableLevel<true>>()),
            _ => None,
        }
    }

    /// Kernels of a weight format.
    pub(crate) fn format(&self, format: Format) -> &FormatKernels {
        &self.formats[format as usize]
    }

    /// Kernels of a cache type, where caches may have it.
    pub(crate) fn kv(&self, dtype: DType) -> Option<&KvKernels> {
        match dtype {
            DType::F32 => Some(&self.kv_f32),
            DType::F16 => Some(&self.kv_f16),
            DType::BF16 => Some(&self.kv_bf16),
            _ => None,
        }
    }
}
