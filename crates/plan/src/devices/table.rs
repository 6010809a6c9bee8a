//! The catalogue of devices, as data.
//!
//! Memory is what a process is told (`cudaMemGetInfo`'s total, which `torch` and every engine
//! use), not what the box says: a driver keeps 1–2 % back. Rates are the makers' dense figures.

use super::Entry;

/// What a figure of memory rests on.
const LOG: &str = "total as engine logs print it";
/// Where only `nvidia-smi` or a data sheet is known.
const SHEET: &str = "maker's data sheet less the 1-2 % that drivers of its kind keep";

macro_rules! device {
    ($name:literal, [$($alias:literal),*], $total:literal, $idle:literal, $bw:literal, $bf16:literal,
     $fp8:literal, $link:literal, $source:expr) => {
        Entry {
            name: $name,
            aliases: &[$($alias),*],
            total_gib: $total,
            used_when_idle_gib: $idle,
            bandwidth_gb_s: $bw,
            bf16_tflops: $bf16,
            fp8_tflops: $fp8,
            link_gb_s: $link,
            source: $source,
        }
    };
}

/// Devices, most specific alias first within a family.
///
/// Columns: name; aliases (compared without case, spaces, `-`, `_`); GiB in total; GiB taken on an
/// idle device with a context open; GB/s of memory; dense BF16 TFLOP/s; dense FP8 or INT8 TFLOP/s;
/// GB/s between two devices of a node, one direction (0: no link but PCIe).
#[rustfmt::skip]
pub(super) const DEVICES: &[Entry] = &[
    device!("H100", ["H100SXM", "H100 80GB HBM3", "H100 SXM5", "H100 80GB"], 79.19, 0.51, 3350.0, 989.0, 1979.0, 450.0, LOG),
    device!("H100-PCIe", ["H100 PCIe", "H100 80GB PCIe"], 79.11, 0.50, 2039.0, 756.0, 1513.0, 0.0, LOG),
    device!("H100-NVL", ["H100 NVL", "H100 94GB"], 93.11, 0.52, 3938.0, 835.0, 1671.0, 300.0, LOG),
    device!("H20", ["H20 96GB"], 95.1, 0.52, 4000.0, 148.0, 296.0, 450.0, LOG),
    device!("H200", ["H200 SXM", "H200 141GB HBM3e"], 139.81, 0.55, 4800.0, 989.0, 1979.0, 450.0, LOG),
    device!("H200-NVL", ["H200 NVL"], 139.80, 0.55, 4800.0, 835.0, 1671.0, 450.0, SHEET),
    device!("GH200", ["GH200 480GB", "GH200 96GB"], 94.5, 0.6, 4000.0, 989.0, 1979.0, 450.0, LOG),
    device!("B200", ["B200 SXM", "B200 180GB"], 178.35, 0.7, 8000.0, 2250.0, 4500.0, 900.0, LOG),
    device!("GB200", ["GB200 NVL72"], 184.3, 0.8, 8000.0, 2500.0, 5000.0, 900.0, LOG),
    device!("B300", ["B300 SXM"], 267.7, 0.9, 8000.0, 2250.0, 4500.0, 900.0, SHEET),
    device!("GB300", ["GB300 NVL72"], 276.5, 0.9, 8000.0, 2500.0, 5000.0, 900.0, SHEET),
    device!("A100-80GB", ["A100", "A100 SXM4 80GB", "A100 80GB SXM", "A100 SXM"], 79.15, 0.45, 2039.0, 312.0, 624.0, 300.0, LOG),
    device!("A100-80GB-PCIe", ["A100 80GB PCIe"], 79.14, 0.45, 1935.0, 312.0, 624.0, 0.0, LOG),
    device!("A100-40GB", ["A100 SXM4 40GB", "A100 PCIE 40GB"], 39.39, 0.45, 1555.0, 312.0, 624.0, 300.0, LOG),
    device!("A10", ["NVIDIA A10 24GB"], 22.06, 0.3, 600.0, 125.0, 250.0, 0.0, LOG),
    device!("A10G", ["A10G 24GB"], 22.07, 0.3, 600.0, 70.0, 140.0, 0.0, LOG),
    device!("A30", ["A30 24GB"], 23.6, 0.4, 933.0, 165.0, 330.0, 0.0, SHEET),
    device!("A40", ["A40 48GB"], 44.43, 0.4, 696.0, 150.0, 299.0, 0.0, LOG),
    device!("A6000", ["RTX A6000", "RTXA6000 48GB"], 47.54, 0.4, 768.0, 155.0, 310.0, 0.0, LOG),
    device!("RTX6000Ada", ["RTX 6000 Ada Generation", "RTX 6000 Ada"], 47.51, 0.4, 960.0, 364.0, 728.0, 0.0, LOG),
    device!("L4", ["L4 24GB"], 22.03, 0.4, 300.0, 121.0, 242.0, 0.0, LOG),
    device!("L40", ["L40 48GB"], 44.39, 0.4, 864.0, 181.0, 362.0, 0.0, LOG),
    device!("L40S", ["L40S 48GB"], 44.39, 0.4, 864.0, 362.0, 733.0, 0.0, LOG),
    device!("T4", ["Tesla T4"], 14.58, 0.2, 320.0, 65.0, 130.0, 0.0, LOG),
    device!("V100-16GB", ["V100 SXM2 16GB", "Tesla V100 16GB"], 15.77, 0.35, 900.0, 125.0, 125.0, 150.0, LOG),
    device!("V100-32GB", ["V100", "V100 SXM2 32GB", "Tesla V100 32GB"], 31.73, 0.35, 900.0, 125.0, 125.0, 150.0, LOG),
    device!("P100", ["Tesla P100 16GB"], 15.89, 0.3, 732.0, 18.7, 18.7, 0.0, SHEET),
    device!("RTX3060", ["RTX 3060 12GB"], 11.63, 0.2, 360.0, 51.0, 102.0, 0.0, LOG),
    device!("RTX3080", ["RTX 3080 10GB"], 9.65, 0.2, 760.0, 119.0, 238.0, 0.0, LOG),
    device!("RTX3090", ["RTX 3090 24GB"], 23.58, 0.25, 936.0, 71.0, 284.0, 0.0, LOG),
    device!("RTX3090Ti", ["RTX 3090 Ti"], 23.57, 0.25, 1008.0, 80.0, 320.0, 0.0, LOG),
    device!("RTX4080", ["RTX 4080 SUPER", "RTX 4080 16GB"], 15.70, 0.25, 717.0, 97.5, 390.0, 0.0, LOG),
    device!("RTX4090", ["RTX 4090 24GB"], 23.64, 0.3, 1008.0, 165.0, 330.0, 0.0, LOG),
    device!("RTX4090-48GB", ["RTX 4090 48GB"], 47.37, 0.3, 1008.0, 165.0, 330.0, 0.0, LOG),
    device!("RTX5060Ti", ["RTX 5060 Ti 16GB"], 15.48, 0.3, 448.0, 47.0, 190.0, 0.0, LOG),
    device!("RTX5070Ti", ["RTX 5070 Ti"], 15.48, 0.3, 896.0, 88.0, 352.0, 0.0, LOG),
    device!("RTX5080", ["RTX 5080 16GB"], 15.48, 0.3, 960.0, 112.0, 450.0, 0.0, LOG),
    device!("RTX5090", ["RTX 5090 32GB"], 31.36, 0.4, 1792.0, 209.5, 419.0, 0.0, LOG),
    device!("RTXPRO4500", ["RTX PRO 4500 Blackwell", "RTX PRO 4500 Blackwell 32GB"], 31.38, 0.4, 896.0, 203.0, 406.0, 0.0, LOG),
    device!("RTXPRO5000", ["RTX PRO 5000 Blackwell"], 47.3, 0.4, 1344.0, 260.0, 520.0, 0.0, SHEET),
    device!("RTXPRO6000", ["RTX PRO 6000 Blackwell", "RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000 96GB"], 94.97, 0.5, 1792.0, 500.0, 1000.0, 0.0, LOG),
    device!("DGX-Spark", ["GB10", "DGX Spark"], 119.7, 1.0, 273.0, 125.0, 250.0, 0.0, LOG),
    device!("MI250X", ["Instinct MI250X"], 63.98, 0.3, 1638.0, 191.5, 191.5, 200.0, SHEET),
    device!("MI300X", ["Instinct MI300X", "MI300X 192GB"], 191.98, 0.4, 5300.0, 1307.0, 2615.0, 64.0, LOG),
    device!("MI325X", ["Instinct MI325X"], 255.98, 0.4, 6000.0, 1307.0, 2615.0, 64.0, SHEET),
    device!("MI355X", ["Instinct MI355X"], 287.98, 0.5, 8000.0, 2300.0, 4600.0, 76.8, SHEET),
    device!("Gaudi3", ["HL-325L"], 126.5, 1.0, 3700.0, 1835.0, 1835.0, 75.0, SHEET),
];
