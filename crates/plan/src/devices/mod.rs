//! Which devices there are, by every name that people and logs call them.
//!
//! Does not look at this machine: a caller that wants the device it runs on passes what it
//! measured ([`Device::host`], [`Device::with_memory`]).

mod table;

use crate::{Device, Error};
use table::DEVICES;

/// Bytes in a GiB.
const GIB: f64 = (1u64 << 30) as f64;
/// Length from which a name says enough for anything to follow it (editions of workstation cards).
const DISTINCT: usize = 12;
/// Words in logs that say nothing about which device it is.
const NOISE: [&str; 9] = [
    "nvidia",
    "geforce",
    "tesla",
    "amd",
    "instinct",
    "gpus",
    "gpu",
    "geforcertx",
    "accelerator",
];

/// One line of the catalogue; units are in its names.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Name in the catalogue.
    pub name: &'static str,
    /// Other names of it.
    pub aliases: &'static [&'static str],
    /// GiB that a process is told the device has.
    pub total_gib: f64,
    /// GiB of those that are taken on an idle device, once a process has opened it.
    pub used_when_idle_gib: f64,
    /// Memory read rate.
    pub bandwidth_gb_s: f64,
    /// Dense matrix rate in BF16 (FP16 where there is no BF16).
    pub bf16_tflops: f64,
    /// Dense matrix rate in FP8 or INT8; as BF16's where there is none.
    pub fp8_tflops: f64,
    /// To another device of the node, one direction; 0 where only PCIe joins them.
    pub link_gb_s: f64,
    /// What the memory figure rests on.
    pub source: &'static str,
}

impl Entry {
    fn device(&self) -> Device {
        let bytes = |gib: f64| (gib * GIB) as u64;
        Device {
            name: self.name.to_owned(),
            total_bytes: bytes(self.total_gib),
            free_bytes: bytes(self.total_gib - self.used_when_idle_gib),
            bandwidth: self.bandwidth_gb_s * 1e9,
            bf16_flops: self.bf16_tflops * 1e12,
            fp8_flops: self.fp8_tflops * 1e12,
            link_bandwidth: self.link_gb_s * 1e9,
            is_cpu: false,
        }
    }
}

/// Every device of the catalogue.
pub fn catalogue() -> &'static [Entry] {
    DEVICES
}

impl Device {
    /// The device of this name, as people write it (`H200`, `rtx 4090`) or as a log does
    /// (`NVIDIA H100 80GB HBM3`, `h100_sxm`, `4x L4 24GB (g6.12xlarge)`).
    ///
    /// # Errors
    /// No device of the catalogue has that name; the nearest ones are named.
    pub fn find(name: &str) -> Result<Device, Error> {
        let wanted = normal(strip_count(strip_note(name)).0);
        if wanted == "cpu" || wanted == "host" {
            return Ok(Device::host(0, 0));
        }
        exact(&wanted)
            .or_else(|| within(&wanted))
            .map(Entry::device)
            .ok_or_else(|| unknown(name, &wanted))
    }

    /// `NAME` or `NAME:COUNT`, or `COUNTx NAME`, as in `--device H200:8`.
    ///
    /// # Errors
    /// An unknown name, or a count that is not a whole number from 1 to 100,000.
    pub fn parse(spec: &str) -> Result<(Device, u32), Error> {
        let (name, count) = match spec.rsplit_once(':') {
            Some((name, count)) => (name, Some(count.trim().to_owned())),
            None => {
                let (_, count) = strip_count(strip_note(spec));
                (spec, count.map(|n| n.to_string()))
            }
        };
        let count = match count {
            None => 1,
            Some(text) => text
                .parse::<u32>()
                .ok()
                .filter(|n| (1..=100_000).contains(n))
                .ok_or_else(|| Error::Setting {
                    setting: "--device",
                    what: format!("{text:?} is not a number of devices from 1 to 100000"),
                })?,
        };
        Ok((Device::find(name)?, count))
    }

    /// The host as a device: this much memory, this read rate in bytes a second (0: not known).
    pub fn host(total_bytes: u64, bandwidth: u64) -> Device {
        Device {
            name: "cpu".to_owned(),
            total_bytes,
            free_bytes: total_bytes,
            bandwidth: bandwidth as f64,
            bf16_flops: 0.0,
            fp8_flops: 0.0,
            link_bandwidth: 0.0,
            is_cpu: true,
        }
    }

    /// The same device with another amount of memory, in bytes; what is taken when idle stays.
    ///
    /// # Errors
    /// An amount of zero, or of 2^50 bytes and more.
    pub fn with_memory(mut self, total_bytes: u64) -> Result<Device, Error> {
        if total_bytes == 0 || total_bytes >= 1 << 50 {
            return Err(Error::Setting {
                setting: "--device-memory",
                what: format!("{total_bytes} bytes; a device has between 1 byte and 1 PiB"),
            });
        }
        let taken = self.total_bytes.saturating_sub(self.free_bytes);
        self.total_bytes = total_bytes;
        self.free_bytes = total_bytes.saturating_sub(taken);
        Ok(self)
    }

    /// Whether devices of a node are joined by a switch or links faster than PCIe.
    pub fn has_fast_links(&self) -> bool {
        self.link_bandwidth >= 100e9
    }
}

/// Text before a remark in brackets.
fn strip_note(name: &str) -> &str {
    name.split('(').next().unwrap_or(name).trim()
}

/// `4x L4` and `8 x H100` as the name and the count.
fn strip_count(name: &str) -> (&str, Option<u32>) {
    let digits = name.len() - name.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let rest = name[digits..].trim_start();
    match (name[..digits].parse(), rest.strip_prefix(['x', 'X', '×'])) {
        (Ok(count), Some(rest)) => (rest.trim(), Some(count)),
        (Ok(count), None) if rest.to_ascii_lowercase().starts_with("gpu") => (rest, Some(count)),
        _ => (name, None),
    }
}

/// Lower case letters and digits, without makers' names.
fn normal(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    lower
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !NOISE.contains(word))
        .collect()
}

fn names(entry: &'static Entry) -> impl Iterator<Item = String> {
    std::iter::once(entry.name)
        .chain(entry.aliases.iter().copied())
        .map(normal)
}

fn exact(wanted: &str) -> Option<&'static Entry> {
    DEVICES
        .iter()
        .find(|entry| names(entry).any(|name| name == wanted))
}

/// The entry with the longest name that `wanted` begins with; what follows a short name may only be an
/// amount of memory or a form factor.
fn within(wanted: &str) -> Option<&'static Entry> {
    DEVICES
        .iter()
        .flat_map(|entry| names(entry).map(move |name| (name.len(), entry, name)))
        .filter(|(_, _, name)| {
            wanted
                .strip_prefix(name.as_str())
                .is_some_and(|rest| name.len() >= DISTINCT || only_details(rest))
        })
        .max_by_key(|(len, _, _)| *len)
        .map(|(_, entry, _)| entry)
}

fn only_details(rest: &str) -> bool {
    let words = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let amount = words.len() < rest.len() && words.starts_with("gb");
    rest.is_empty()
        || amount
        || ["sxm", "pcie", "hbm", "oam"]
            .iter()
            .any(|word| rest.starts_with(word))
}

fn unknown(name: &str, wanted: &str) -> Error {
    let mut near: Vec<(usize, &str)> = DEVICES
        .iter()
        .map(|entry| (common(&normal(entry.name), wanted), entry.name))
        .filter(|(shared, _)| *shared > 0)
        .collect();
    near.sort_by_key(|(shared, _)| std::cmp::Reverse(*shared));
    let near: Vec<&str> = near.into_iter().take(4).map(|(_, name)| name).collect();
    let nearest = if near.is_empty() {
        "H100, H200, A100-80GB, RTX4090, L4, cpu; or any with --device-memory".to_owned()
    } else {
        near.join(", ")
    };
    Error::Unknown {
        kind: "device",
        name: name.to_owned(),
        nearest,
    }
}

/// Characters that both begin with.
fn common(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(spec: &str) -> String {
        Device::find(spec).unwrap().name
    }

    #[test]
    fn finds_devices_as_logs_write_them() {
        assert_eq!(name("NVIDIA H100 80GB HBM3"), "H100");
        assert_eq!(name("H100 80GB"), "H100");
        assert_eq!(name("h100_sxm"), "H100");
        assert_eq!(name("4x L4 24GB (g6.12xlarge)"), "L4");
        assert_eq!(name("2x RTX 4090"), "RTX4090");
        assert_eq!(name("NVIDIA GeForce RTX 3090"), "RTX3090");
        assert_eq!(name("8x RTX PRO 4500 Blackwell 32GB"), "RTXPRO4500");
        assert_eq!(name("gb300"), "GB300");
        assert_eq!(
            name("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"),
            "RTXPRO6000"
        );
        assert_eq!(name("AMD Instinct MI300X OAM"), "MI300X");
        assert_eq!(name("NVIDIA A100-SXM4-40GB"), "A100-40GB");
        assert_eq!(name("A10G"), "A10G");
        assert_eq!(name("L40S"), "L40S");
        assert_eq!(name("Tesla T4"), "T4");
        assert!(Device::find("CPU").unwrap().is_cpu);
    }

    #[test]
    fn counts_come_from_either_end() {
        assert_eq!(Device::parse("H200:8").unwrap().1, 8);
        assert_eq!(Device::parse("4x L4 24GB (g6.12xlarge)").unwrap().1, 4);
        assert_eq!(Device::parse("RTX 4090").unwrap().1, 1);
        for bad in ["H200:0", "H200:-1", "H200:many", "H200:", ":8", ""] {
            assert!(Device::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn unknown_devices_name_their_neighbours() {
        let message = Device::find("H1000").unwrap_err().to_string();
        assert!(message.contains("H100"), "{message}");
        assert!(Device::find("quantum").is_err());
        assert!(Device::find("8 GPUs").is_err());
    }

    #[test]
    fn memory_can_be_given() {
        let device = Device::find("H100").unwrap().with_memory(80 << 30).unwrap();
        assert_eq!(device.total_bytes, 80 << 30);
        assert!(device.free_bytes < device.total_bytes);
        assert!(Device::find("H100").unwrap().with_memory(0).is_err());
    }

    #[test]
    fn the_catalogue_is_consistent() {
        for entry in catalogue() {
            assert_eq!(Device::find(entry.name).unwrap().name, entry.name);
            for alias in entry.aliases {
                assert_eq!(Device::find(alias).unwrap().name, entry.name, "{alias}");
            }
            assert!(entry.used_when_idle_gib < entry.total_gib);
            assert!(entry.fp8_tflops >= entry.bf16_tflops);
        }
    }
}
