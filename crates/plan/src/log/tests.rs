use super::*;

const VLLM_V0: &str = "\
INFO 03-04 10:00:00 llm_engine.py:234] Initializing a V0 LLM engine (v0.7.3) with config: model='org/m', dtype=torch.bfloat16, max_seq_len=128000, tensor_parallel_size=8, pipeline_parallel_size=1, quantization=fp8, kv_cache_dtype=auto
INFO 03-04 10:01:00 model_runner.py:1115] Loading model weights took 83.8809 GB
INFO 03-04 10:02:00 worker.py:267] the current vLLM instance can use total_gpu_memory (139.81GiB) x gpu_memory_utilization (0.85) = 118.84GiB
INFO 03-04 10:02:00 worker.py:267] model weights take 83.88GiB; non_torch_memory takes 7.16GiB; PyTorch activation peak memory takes 6.37GiB; the rest of the memory reserved for KV Cache is 21.43GiB.
INFO 03-04 10:02:01 executor_base.py:111] # cuda blocks: 18418, # CPU blocks: 3355
INFO 03-04 10:02:01 executor_base.py:116] Maximum concurrency for 128000 tokens per request: 2.30x
";

const VLLM_V1: &str = "\
(EngineCore_DP0 pid=1) INFO 04-01 core.py:97] Initializing a V1 LLM engine (v0.19.0) with config: model='meta-llama/Llama-3.1-8B-Instruct', dtype=torch.bfloat16, max_seq_len=8192, tensor_parallel_size=1, quantization=None, enforce_eager=False, kv_cache_dtype=auto
\u{1b}[0;36m(EngineCore_DP0 pid=1)\u{1b}[0;0m INFO 04-01 gpu_model_runner.py:4820] Model loading took 14.99 GiB memory and 5.1 seconds
INFO 04-01 gpu_worker.py:470] Initial free memory: 78.68 GiB; Requested memory: 0.95 (util), 75.23 GiB
INFO 04-01 gpu_worker.py:436] Available KV cache memory: 58.11 GiB
INFO 04-01 kv_cache_utils.py:1319] GPU KV cache size: 476,016 tokens
INFO 04-01 kv_cache_utils.py:1324] Maximum concurrency for 8,192 tokens per request: 58.11x
INFO 04-01 gpu_model_runner.py:5746] Graph capturing finished in 5 secs, took 0.91 GiB
";

const SGLANG: &str = "\
[2025-03-11 08:00:00] server_args=ServerArgs(model_path='Qwen/QwQ-32B', mem_fraction_static=0.85, chunked_prefill_size=2048, tp_size=4, cuda_graph_max_bs=80)
[2025-03-11 08:00:10 TP0] Load weight begin. avail mem=21.63 GB
[2025-03-11 08:01:10 TP0] Load weight end. type=Qwen2ForCausalLM, dtype=torch.bfloat16, avail mem=6.09 GB, mem usage=15.54 GB.
[2025-03-11 08:01:11 TP0] KV Cache is allocated. #tokens: 46611, K size: 1.42 GB, V size: 1.42 GB
[2025-03-11 08:01:11 TP0] Memory pool end. avail mem=2.09 GB
[2025-03-11 08:01:30 TP0] Capture cuda graph end. Time elapsed: 18.5 s. mem usage=0.93 GB. avail mem=1.16 GB.
[2025-03-11 08:01:31 TP0] max_total_num_tokens=46611, chunked_prefill_size=2048, max_prefill_tokens=16384, max_running_requests=2049, context_len=131072
";

const LLAMA_CPP: &str = "\
0.00.412.355 I llama_model_loader: - kv   2:                               general.name str              = Smollm2 135M
0.00.431.388 I print_info: file size   = 136.40 MiB (8.51 BPW)
0.00.675.539 I load_tensors:   CPU_Mapped model buffer size =   136.40 MiB
0.00.683.490 I llama_context: n_seq_max             = 2
0.00.683.514 I llama_context: n_ctx_seq             = 2048
0.00.683.536 I llama_context: n_ubatch              = 512
0.00.683.678 I llama_context:        CPU  output buffer size =     0.38 MiB
0.00.683.792 I llama_kv_cache:        CPU KV buffer size =    90.00 MiB
0.00.820.042 I llama_kv_cache: size =   90.00 MiB (  2048 cells,  30 layers,  2/2 seqs), K (f16):   45.00 MiB, V (f16):   45.00 MiB
0.00.822.556 I sched_reserve:        CPU compute buffer size =    15.51 MiB
";

#[test]
fn the_first_vllm_engine() {
    let report = explain(VLLM_V0).unwrap();
    assert_eq!(
        (report.engine.as_str(), report.version.as_deref()),
        ("vllm", Some("0.7.3"))
    );
    assert_eq!(report.model.as_deref(), Some("org/m"));
    for (name, value) in [
        ("weights_gib", 83.8809),
        ("budget_gib", 118.84),
        ("non_torch_gib", 7.16),
        ("activation_peak_gib", 6.37),
        ("kv_gib", 21.43),
        ("gpu_blocks", 18418.0),
        ("max_concurrency", 2.30),
    ] {
        assert_eq!(report.figure(name), Some(value), "{name}");
    }
    assert_eq!(report.settings["tp"], 8.0);
    assert_eq!(report.settings["gpu_memory_utilization"], 0.85);
    assert!(
        report.explanation[1].contains("6.37"),
        "{:?}",
        report.explanation
    );
}

#[test]
fn newer_vllm_through_colours() {
    let report = explain(VLLM_V1).unwrap();
    assert_eq!(report.figure("weights_gib"), Some(14.99));
    assert_eq!(report.figure("kv_tokens"), Some(476_016.0));
    assert_eq!(report.figure("cuda_graph_gib"), Some(0.91));
    assert_eq!(report.settings["max_model_len"], 8192.0);
    assert!(
        report
            .explanation
            .iter()
            .any(|l| l.contains("131078 bytes a token") || l.contains("13107")),
        "{:?}",
        report.explanation
    );
}

/// As 0.25 prints it.
#[test]
fn the_line_that_sums_up() {
    let report = explain(
        "Free memory on device (30.27/31.4 GiB) on startup. Desired GPU memory utilization is \
         (0.92, 28.88 GiB). Actual usage is 15.03 GiB for consumed memory (weights + non-torch), \
         1.59 GiB for peak activation, and 0.09 GiB for CUDAGraph memory. Current kv cache memory \
         in use is 12.26 GiB.",
    )
    .unwrap();
    assert_eq!(report.figure("budget_gib"), Some(28.88));
    assert_eq!(report.figure("activation_peak_gib"), Some(1.59));
    assert_eq!(report.figure("kv_gib"), Some(12.26));
    assert_eq!(report.settings["gpu_memory_utilization"], 0.92);
    assert_eq!(report.settings["total_gpu_gib"], 31.4);
}

#[test]
fn sglang() {
    let report = explain(SGLANG).unwrap();
    assert_eq!(report.engine, "sglang");
    assert_eq!(report.figure("weights_gb"), Some(15.54));
    assert_eq!(report.figure("avail_after_pool_gb"), Some(2.09));
    assert_eq!(report.settings["tp"], 4.0);
    assert!(
        report.explanation[1].contains("2.85 go to the KV cache"),
        "{:?}",
        report.explanation
    );
}

#[test]
fn llama_cpp() {
    let report = explain(LLAMA_CPP).unwrap();
    assert_eq!(report.engine, "llama.cpp");
    assert_eq!(report.figure("kv_buffer_mib"), Some(90.0));
    assert_eq!(report.figure("compute_buffer_mib"), Some(15.51));
    assert_eq!(report.settings["max_num_seqs"], 2.0);
    assert!(
        report
            .explanation
            .iter()
            .any(|l| l.contains("compute buffers 15.51"))
    );
}

#[test]
fn a_log_is_held_against_a_plan() {
    let shape = crate::catalogue::shape("meta-llama/Llama-3.1-8B-Instruct").unwrap();
    let extra = serde_json::json!({"gpu": "H100"});
    let rows = explain(VLLM_V1)
        .unwrap()
        .against(&shape, extra.as_object().unwrap())
        .unwrap();
    let row = |name: &str| rows.iter().find(|q| q.name == name).unwrap();
    assert!(row("weights_gib").relative_error < 0.001);
    assert!(row("kv_tokens").relative_error < 0.01);
}

#[test]
fn other_texts_are_refused() {
    for text in [
        "",
        "hello",
        "Model loading took ages",
        "avail mem=1 GB",
        "\u{1b}[31m",
    ] {
        assert!(explain(text).is_err(), "{text:?}");
    }
}
