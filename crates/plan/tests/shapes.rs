//! Parameter totals against published ones, for every family.

#![allow(clippy::unwrap_used)]

use scrimp_plan::catalogue;

/// Totals that hubs report, or that follow from the sizes of released files.
const TOTALS: &[(&str, u64)] = &[
    ("deepseek-ai/DeepSeek-V3", 684_531_386_000),
    ("deepseek-ai/DeepSeek-V2-Lite", 15_706_484_224),
    ("deepseek-ai/DeepSeek-V2", 235_741_434_880),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7_615_616_512),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", 14_770_033_664),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", 32_763_876_352),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8_030_261_248),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", 70_553_706_496),
    ("Qwen/Qwen2.5-0.5B", 494_032_768),
    ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
    ("Qwen/Qwen2.5-3B", 3_085_938_688),
    ("Qwen/Qwen2.5-7B", 7_615_616_512),
    ("Qwen/Qwen2.5-72B", 72_706_203_648),
    ("Qwen/QwQ-32B", 32_763_876_352),
    ("Qwen/Qwen3-0.6B", 596_049_920),
    ("Qwen/Qwen3-1.7B", 1_720_574_976),
    ("Qwen/Qwen3-4B", 4_022_468_096),
    ("Qwen/Qwen3-8B", 8_190_735_360),
    ("Qwen/Qwen3-14B", 14_768_307_200),
    ("Qwen/Qwen3-32B", 32_762_123_264),
    ("Qwen/Qwen3-30B-A3B", 30_532_122_624),
    ("Qwen/Qwen3-235B-A22B", 235_093_634_560),
    ("Qwen/Qwen3.5-4B", 4_659_865_088),
    ("Qwen/Qwen3.5-9B", 9_653_104_368),
    ("Qwen/Qwen3.6-27B", 27_781_427_952),
    ("Qwen/Qwen3.6-35B-A3B", 35_951_822_704),
    ("Qwen/Qwen3.5-397B-A17B", 403_397_928_944),
    ("deepseek-ai/DeepSeek-V3.2-Exp", 685_396_921_376),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", 81_324_862_720),
    ("openai/gpt-oss-20b", 20_914_757_184),
    ("openai/gpt-oss-120b", 116_829_156_672),
    ("meta-llama/Llama-3.1-8B", 8_030_261_248),
    ("meta-llama/Llama-3.1-405B", 405_853_388_800),
    ("meta-llama/Llama-3.2-1B", 1_235_814_400),
    ("meta-llama/Llama-3.2-3B", 3_212_749_824),
    ("meta-llama/Llama-3.3-70B-Instruct", 70_553_706_496),
    ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
    ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
    ("codellama/CodeLlama-7b-hf", 6_738_546_688),
    ("zai-org/GLM-4.5-Air", 110_468_824_832),
    ("zai-org/GLM-4.5", 358_337_791_296),
    ("zai-org/GLM-4.6", 356_785_898_816),
    ("zai-org/GLM-4.7", 358_337_791_296),
    ("Qwen/Qwen3-Coder-Next", 79_674_391_296),
    ("zai-org/GLM-5", 753_864_139_008),
    ("zai-org/GLM-5.3", 753_329_940_480),
    ("google/gemma-2-2b", 2_614_341_888),
    ("google/gemma-2-9b", 9_241_705_984),
    ("google/gemma-2-27b", 27_227_128_320),
    ("google/gemma-3-1b-it", 999_885_952),
    ("google/gemma-3-4b-it", 4_300_079_472),
    ("google/gemma-3-12b-it", 12_187_325_040),
    ("google/gemma-3-27b-it", 27_432_406_640),
    ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
    ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
    ("mistralai/Mistral-Small-24B-Instruct-2501", 23_572_403_200),
    (
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        24_011_361_280,
    ),
    ("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704),
    ("mistralai/Mixtral-8x22B-Instruct-v0.1", 140_630_071_296),
    ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
    ("HuggingFaceTB/SmolLM2-360M", 361_821_120),
    ("HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384),
    ("facebook/opt-125m", 125_239_296),
    ("facebook/opt-6.7b", 6_658_473_984),
    ("microsoft/phi-2", 2_779_683_840),
    ("microsoft/Phi-3-mini-4k-instruct", 3_821_079_552),
    ("microsoft/phi-4", 14_659_507_200),
    ("ibm-granite/granite-3.1-8b-instruct", 8_170_848_256),
    ("ibm-granite/granite-3.3-8b-instruct", 8_170_864_640),
    ("allenai/OLMo-2-1124-7B", 7_298_617_344),
    ("allenai/OLMo-2-1124-13B", 13_716_198_400),
    ("ibm-granite/granite-vision-3.3-2b", 2_975_396_928),
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 108_641_793_536),
    (
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
        401_583_781_376,
    ),
    ("mistralai/Mistral-Nemo-Instruct-2407", 12_247_782_400),
    ("mistralai/Ministral-8B-Instruct-2410", 8_019_808_256),
    ("mistralai/Mistral-Large-Instruct-2407", 122_610_069_504),
    ("mistralai/Codestral-22B-v0.1", 22_247_282_688),
    ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384),
    ("CohereForAI/c4ai-command-r-v01", 34_980_831_232),
    ("CohereForAI/c4ai-command-r-08-2024", 32_296_476_672),
    ("CohereForAI/c4ai-command-r7b-12-2024", 8_028_033_024),
    ("microsoft/Phi-4-mini-instruct", 3_836_021_760),
    ("microsoft/Phi-3-medium-4k-instruct", 13_960_238_080),
    ("zai-org/GLM-4-9B-0414", 9_400_279_040),
    ("zai-org/GLM-4-32B-0414", 32_566_081_536),
    ("Qwen/Qwen3-Coder-480B-A35B-Instruct", 480_154_875_392),
    ("Qwen/Qwen1.5-MoE-A2.7B", 14_315_784_192),
    ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
];

#[test]
fn totals_are_the_published_ones() {
    let wrong: Vec<String> = TOTALS
        .iter()
        .filter_map(|(name, total)| {
            let found = catalogue::shape(name).unwrap().total_params();
            (found != *total).then(|| {
                let off = i128::from(found) - i128::from(*total);
                format!("{name}: {found} rather than {total} ({off:+})")
            })
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a token uses, embeddings included and prediction layers not.
#[test]
fn active_parameters_are_the_published_ones() {
    for (name, active) in [
        ("Qwen/Qwen3-30B-A3B", 3_353_032_704),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 3_874_929_408),
        ("Qwen/Qwen3-8B", 8_190_735_360),
    ] {
        let shape = catalogue::shape(name).unwrap();
        assert_eq!(shape.active_params(), active, "{name}");
    }
}

#[test]
fn parameters_of_r1_by_type_are_those_of_its_headers() {
    let found = catalogue::shape("DeepSeek-R1").unwrap().params_by_dtype();
    let expected = [
        ("BF16", 3_918_786_560),
        ("F32", 41_555_600),
        ("F8_E4M3", 680_571_043_840),
    ];
    assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    let bytes = catalogue::shape("DeepSeek-R1").unwrap().tensor_bytes();
    assert_eq!(bytes, 688_574_839_360);
    assert_eq!(
        catalogue::shape("gpt-oss-20b").unwrap().tensor_bytes(),
        13_761_264_768
    );
}
