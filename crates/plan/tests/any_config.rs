//! Whatever a config says: an error or a shape whose sums hold, never a panic.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use scrimp_plan::{KvDtype, ModelShape, WeightScheme, caches_from_config, catalogue};
use serde_json::{Value, json};

fn odd_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(|v| json!(v)),
        any::<i64>().prop_map(|v| json!(v)),
        any::<f64>().prop_map(|v| json!(v)),
        (0u64..300).prop_map(|v| json!(v)),
        (0u32..40).prop_map(|v| json!(1u64 << v)),
        "[a-z_]{0,12}".prop_map(|v| json!(v)),
        prop::collection::vec(0u64..9, 0..4).prop_map(|v| json!(v)),
        Just(json!({})),
    ]
}

/// Replaces the value under one of the keys, at the top or one level down.
fn replace(config: &mut Value, which: prop::sample::Index, value: Value) {
    let Value::Object(map) = config else { return };
    let mut paths: Vec<Vec<String>> = Vec::new();
    for (key, inner) in map.iter() {
        paths.push(vec![key.clone()]);
        if let Value::Object(inner) = inner {
            paths.extend(inner.keys().map(|k| vec![key.clone(), k.clone()]));
        }
    }
    let path = which.get(&paths);
    let slot = path.iter().fold(config, |at, key| &mut at[key.as_str()]);
    *slot = value;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn sums_hold_or_there_is_an_error(
        model in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), odd_value()), 1..4),
        tokens in any::<u64>(),
    ) {
        let names = catalogue::names();
        let mut config = catalogue::find(names[model.index(names.len())]).unwrap().config;
        for (which, value) in changes {
            replace(&mut config, which, value);
        }
        let _ = caches_from_config("any", &config);
        let Ok(shape) = ModelShape::from_partial_config("any", &config) else {
            return Ok(());
        };
        let whole = ModelShape::from_config("any", &config);
        prop_assert_eq!(whole.is_ok(), shape.undetermined.is_none());
        prop_assert!(shape.kv_bytes(tokens, KvDtype::Bf16) >= shape.kv_bytes(tokens / 2, KvDtype::Bf16));
        prop_assert!(
            shape.kv_bytes_per_token(KvDtype::Bf16)
                <= shape.kv_bytes_per_token_unwindowed(KvDtype::Bf16)
        );
        let by_component: u64 = shape.by_component().values().map(|(values, _)| values).sum();
        prop_assert!(by_component <= shape.total_params());
        prop_assert!(shape.active_params() <= by_component);
        prop_assert!(shape.model_params() <= by_component);
        for scheme in ["released", "bf16", "experts-int4", "gguf:Q4_K_M", "gguf:IQ1_S"] {
            let scheme = WeightScheme::parse(scheme).unwrap();
            let bytes: u64 = shape.bytes_under(&scheme).iter().map(|b| b.total()).sum();
            prop_assert!(bytes <= 4 * shape.total_params() + (1 << 30));
            prop_assert!(shape.file_bytes(&scheme) >= bytes);
        }
    }
}
