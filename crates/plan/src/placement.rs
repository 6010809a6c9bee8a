//! Where each layer's weights live, by layer class: the guide's policy as data.
//!
//! A class says how much its tensors want to be on the device: `always_device`, `prefer_device`, or
//! `host_if_pressure`. When the weights are over what the device has for them, tensors go to the
//! host by class, last layer first, until the rest fits.

use serde::Serialize;

use crate::{Component, Error, ModelShape, WeightScheme};

/// Classes of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerClass {
    /// The token embedding.
    Embedding,
    /// Attention and dense feed-forwards of the first half of the layers.
    EarlyLayers,
    /// Routed experts of all layers.
    ExpertLayers,
    /// Attention and dense feed-forwards of the second half.
    LateLayers,
    /// The output head and what comes after the layers.
    LmHead,
}

/// How much a class wants to be on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// The first to leave.
    HostIfPressure,
    /// Leaves when the first ones were not enough.
    PreferDevice,
    /// Never leaves.
    AlwaysDevice,
}

const CLASSES: [(&str, LayerClass); 5] = [
    ("embedding", LayerClass::Embedding),
    ("early_layers", LayerClass::EarlyLayers),
    ("expert_layers", LayerClass::ExpertLayers),
    ("late_layers", LayerClass::LateLayers),
    ("lm_head", LayerClass::LmHead),
];

const WISHES: [(&str, Wish); 3] = [
    ("always_device", Wish::AlwaysDevice),
    ("prefer_device", Wish::PreferDevice),
    ("host_if_pressure", Wish::HostIfPressure),
];

/// A wish for each class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy([Wish; 5]);

impl Default for Policy {
    /// The guide's: embedding and head always, early layers and experts preferably, late layers to
    /// the host under pressure.
    fn default() -> Policy {
        Policy([
            Wish::AlwaysDevice,
            Wish::PreferDevice,
            Wish::PreferDevice,
            Wish::HostIfPressure,
            Wish::AlwaysDevice,
        ])
    }
}

impl Policy {
    /// Reads `expert_layers=host_if_pressure,late_layers=prefer_device`; the rest is the default.
    ///
    /// # Errors
    /// A class or a wish that there is not.
    pub fn parse(text: &str) -> Result<Policy, Error> {
        let mut policy = Policy::default();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (class, wish) = part.split_once('=').unwrap_or((part, ""));
            let class = find("layer class", &CLASSES, class)?;
            policy.0[class as usize] = find("placement", &WISHES, wish)?;
        }
        Ok(policy)
    }

    /// What a class wants.
    pub fn of(&self, class: LayerClass) -> Wish {
        self.0[class as usize]
    }
}

fn find<T: Copy>(kind: &'static str, table: &[(&str, T)], name: &str) -> Result<T, Error> {
    let found = table.iter().find(|(known, _)| *known == name.trim());
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| Error::Unknown {
            kind,
            name: name.trim().to_owned(),
            nearest: table
                .iter()
                .map(|(known, _)| *known)
                .collect::<Vec<_>>()
                .join(", "),
        })
}

impl LayerClass {
    /// Its name in a policy.
    pub fn name(self) -> &'static str {
        CLASSES[self as usize].0
    }
}

impl Wish {
    /// Its name in a policy.
    pub fn name(self) -> &'static str {
        let found = WISHES.iter().find(|(_, wish)| *wish == self);
        found.map_or("", |(name, _)| name)
    }
}

/// Neighbouring layers of one class that were placed alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Placed {
    /// Class of the tensors.
    pub class: LayerClass,
    /// What the class wants.
    pub wish: Wish,
    /// First and last layer; `None` outside the layers.
    pub layers: Option<(u32, u32)>,
    /// Bytes on devices, all together.
    pub device_bytes: u64,
    /// Bytes in host memory.
    pub host_bytes: u64,
}

/// Where weights live.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Placement {
    /// First layer to last, with equal neighbours joined.
    pub rows: Vec<Placed>,
    /// Bytes on devices.
    pub device_bytes: u64,
    /// Bytes in host memory.
    pub host_bytes: u64,
    /// Bytes that have to be on the device and have no room there.
    pub missing_bytes: u64,
}

/// Places the weights of a model where devices have `room` bytes for them all together;
/// multi-token-prediction layers are left out.
pub fn place(shape: &ModelShape, scheme: &WeightScheme, policy: &Policy, room: u64) -> Placement {
    let layers = shape.caches.len() as u32;
    let mut parts: Vec<Part> = Vec::new();
    for (group, bytes) in shape.tensors.iter().zip(shape.bytes_under(scheme)) {
        if group.component == Component::Mtp {
            continue; // loaded only by those who speculate with it
        }
        let class = class_of(group.component, group.layer, layers);
        let layer = group.layer.filter(|_| class != LayerClass::LmHead);
        match parts
            .iter_mut()
            .find(|p| p.class == class && p.layer == layer)
        {
            Some(part) => part.bytes += bytes.total(),
            None => parts.push(Part {
                class,
                layer,
                bytes: bytes.total(),
                on_host: false,
            }),
        }
    }
    let missing_bytes = evict(&mut parts, policy, room);
    parts.sort_by_key(|p| (rank(p), p.layer, p.class));
    let sum = |host: bool| {
        parts
            .iter()
            .filter(|p| p.on_host == host)
            .map(|p| p.bytes)
            .sum()
    };
    Placement {
        device_bytes: sum(false),
        host_bytes: sum(true),
        missing_bytes,
        rows: joined(&parts, policy),
    }
}

struct Part {
    class: LayerClass,
    layer: Option<u32>,
    bytes: u64,
    on_host: bool,
}

/// Embedding first, then the layers, then the head.
fn rank(part: &Part) -> u8 {
    match part.class {
        LayerClass::Embedding => 0,
        LayerClass::LmHead => 2,
        _ => 1,
    }
}

fn class_of(component: Component, layer: Option<u32>, layers: u32) -> LayerClass {
    match (component, layer) {
        (Component::Embedding, _) => LayerClass::Embedding,
        (Component::RoutedExperts, Some(layer)) if layer < layers => LayerClass::ExpertLayers,
        (_, Some(layer)) if layer < layers.div_ceil(2) => LayerClass::EarlyLayers,
        (_, Some(layer)) if layer < layers => LayerClass::LateLayers,
        _ => LayerClass::LmHead,
    }
}

/// Sends parts to the host until the rest fits; what is still missing then.
fn evict(parts: &mut [Part], policy: &Policy, room: u64) -> u64 {
    let mut held: u64 = parts.iter().map(|p| p.bytes).sum();
    let mut order: Vec<usize> = (0..parts.len()).collect();
    // Last layer first; of one layer experts first: a token reads few of them.
    order.sort_by_key(|&at| {
        let part = &parts[at];
        let experts = part.class != LayerClass::ExpertLayers;
        (
            policy.of(part.class),
            experts,
            std::cmp::Reverse(part.layer),
        )
    });
    for at in order {
        let part = &mut parts[at];
        if held <= room || policy.of(part.class) == Wish::AlwaysDevice {
            continue;
        }
        part.on_host = true;
        held -= part.bytes;
    }
    held.saturating_sub(room)
}

/// Rows of a class with the same place, next to one another.
fn joined(parts: &[Part], policy: &Policy) -> Vec<Placed> {
    let mut rows: Vec<Placed> = Vec::new();
    let mut open: Vec<(LayerClass, bool, usize)> = Vec::new();
    for part in parts {
        let last = open.iter().position(|(class, _, _)| *class == part.class);
        if let Some(at) = last
            && open[at].1 == part.on_host
            && part.layer.is_some()
        {
            let row = &mut rows[open[at].2];
            add(row, part);
            continue;
        }
        if let Some(at) = last {
            open.remove(at);
        }
        open.push((part.class, part.on_host, rows.len()));
        let mut row = Placed {
            class: part.class,
            wish: policy.of(part.class),
            layers: part.layer.map(|layer| (layer, layer)),
            device_bytes: 0,
            host_bytes: 0,
        };
        add(&mut row, part);
        rows.push(row);
    }
    rows
}

fn add(row: &mut Placed, part: &Part) {
    if part.on_host {
        row.host_bytes += part.bytes;
    } else {
        row.device_bytes += part.bytes;
    }
    if let (Some((_, last)), Some(layer)) = (&mut row.layers, part.layer) {
        *last = layer.max(*last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    fn r1(room: u64, policy: &Policy) -> Placement {
        let shape = catalogue::shape("deepseek-ai/DeepSeek-R1").unwrap();
        place(&shape, &WeightScheme::Released, policy, room)
    }

    #[test]
    fn everything_is_on_the_device_where_there_is_room() {
        let placed = r1(u64::MAX, &Policy::default());
        assert_eq!((placed.host_bytes, placed.missing_bytes), (0, 0));
        let shape = catalogue::shape("deepseek-ai/DeepSeek-R1").unwrap();
        let mtp = shape.by_component()[&Component::Mtp].1;
        assert_eq!(placed.device_bytes, shape.tensor_bytes() - mtp);
        let classes: Vec<&str> = placed.rows.iter().map(|r| r.class.name()).collect();
        let expected = [
            "embedding",
            "early_layers",
            "expert_layers",
            "late_layers",
            "lm_head",
        ];
        assert_eq!(classes, expected);
        assert_eq!(placed.rows[2].layers, Some((3, 60)));
        assert_eq!(placed.rows[3].layers, Some((31, 60)));
    }

    #[test]
    fn pressure_moves_the_last_layers_first_and_no_more_than_needed() {
        let all = r1(u64::MAX, &Policy::default()).device_bytes;
        let policy = Policy::parse("expert_layers=host_if_pressure,late_layers=prefer_device");
        let placed = r1(all - (100 << 30), &policy.unwrap());
        assert_eq!(placed.missing_bytes, 0);
        let moved: Vec<_> = placed.rows.iter().filter(|r| r.host_bytes > 0).collect();
        assert_eq!(moved.len(), 1);
        assert_eq!(moved[0].class, LayerClass::ExpertLayers);
        assert_eq!(moved[0].layers.unwrap().1, 60);
        let layer = 256 * 3 * 7168 * 2048u64;
        assert!((100 << 30..(100 << 30) + 2 * layer).contains(&placed.host_bytes));
    }

    #[test]
    fn the_guides_policy_moves_late_layers_before_experts() {
        let all = r1(u64::MAX, &Policy::default()).device_bytes;
        let placed = r1(all - (1 << 30), &Policy::default());
        let moved = placed.rows.iter().filter(|r| r.host_bytes > 0);
        assert!(moved.map(|r| r.class).all(|c| c == LayerClass::LateLayers));
    }

    #[test]
    fn what_must_stay_stays_and_what_is_missing_is_said() {
        let placed = r1(0, &Policy::default());
        assert!(placed.missing_bytes > 0);
        assert_eq!(placed.missing_bytes, placed.device_bytes);
        let kept = placed.rows.iter().filter(|r| r.device_bytes > 0);
        assert!(
            kept.map(|r| r.class)
                .all(|c| { matches!(c, LayerClass::Embedding | LayerClass::LmHead) })
        );
    }

    #[test]
    fn policies_are_read_or_refused() {
        assert_eq!(Policy::parse("").unwrap(), Policy::default());
        for bad in ["late", "late_layers", "late_layers=cpu", "x=always_device"] {
            assert!(Policy::parse(bad).is_err(), "{bad}");
        }
    }
}
