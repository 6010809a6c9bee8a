//! A Kubernetes manifest: a Deployment on one node, a LeaderWorkerSet on several.

use super::command::Command;
use super::{Target, commands, nodes, planned_target};
use crate::remedy::Evaluated;
use crate::{EngineKind, Error, ModelShape};

/// Where each engine publishes itself, and where it answers.
fn image(engine: EngineKind) -> Option<(&'static str, u16, &'static str)> {
    match engine {
        EngineKind::Vllm => Some(("vllm/vllm-openai:latest", 8000, "/health")),
        EngineKind::Sglang => Some(("lmsysorg/sglang:latest", 30000, "/health")),
        EngineKind::LlamaCpp => Some(("ghcr.io/ggml-org/llama.cpp:server-cuda", 8080, "/health")),
        EngineKind::Scrimp | EngineKind::TrtLlm => None,
    }
}

pub(super) fn manifest(model: &str, shape: &ModelShape, plan: &Evaluated) -> Result<String, Error> {
    let engine = plan.setup.deployment.engine.kind;
    let (Some((image, port, health)), Some(target)) = (image(engine), planned_target(plan)) else {
        return Err(Error::Setting {
            setting: "--emit",
            what: format!(
                "there is no published image for {}: plan for vllm, sglang or llama.cpp",
                engine.name()
            ),
        });
    };
    let name = name(model);
    let nodes = nodes(plan);
    let devices = plan.setup.deployment.parallel.devices().div_ceil(nodes);
    let serving = commands(target, model, shape, plan)?;
    let service = service(&name, port, nodes > 1);
    let notes: String = serving
        .first()
        .map(|c| c.notes.iter().map(|n| format!("# {n}\n")).collect())
        .unwrap_or_default();
    if nodes == 1 {
        let mut command = serving.into_iter().next().unwrap_or_default();
        listen(&mut command, engine, port);
        let pod = pod(&name, image, port, health, devices, &command.words(), 6);
        return Ok(format!(
            "{notes}apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {name}\nspec:\n  replicas: 1\n  \
             selector:\n    matchLabels:\n      app: {name}\n  template:\n    metadata:\n      \
             labels:\n        app: {name}\n    spec:\n{pod}---\n{service}"
        ));
    }
    let (leader, worker) = grouped(engine, target, &serving, nodes, port);
    let leader = pod(&name, image, port, health, devices, &leader, 8);
    let worker = pod(&name, image, 0, health, devices, &worker, 8);
    Ok(format!(
        "# needs the LeaderWorkerSet controller\napiVersion: leaderworkerset.x-k8s.io/v1\n\
         kind: LeaderWorkerSet\nmetadata:\n  name: {name}\nspec:\n  replicas: 1\n  \
         leaderWorkerTemplate:\n    size: {nodes}\n    restartPolicy: RecreateGroupOnPodRestart\n    \
         leaderTemplate:\n      metadata:\n        labels:\n          app: {name}\n          \
         role: leader\n      spec:\n{leader}    workerTemplate:\n      spec:\n{worker}---\n{service}"
    ))
}

/// Commands of leader and workers, in the words of a LeaderWorkerSet's environment.
fn grouped(
    engine: EngineKind,
    target: Target,
    serving: &[Command],
    nodes: u64,
    port: u16,
) -> (Vec<String>, Vec<String>) {
    let shell = |script: String| vec!["sh".to_owned(), "-c".to_owned(), script];
    let address = "$(LWS_LEADER_ADDRESS)";
    let filled = |line: String| line.replace("$HEAD_ADDRESS", address);
    if target == Target::Vllm && serving.first().is_some_and(|c| c.program[0] == "ray") {
        let script = "/vllm-workspace/examples/online_serving/multi-node-serving.sh";
        let mut serve = serving.last().cloned().unwrap_or_default();
        listen(&mut serve, engine, port);
        return (
            shell(format!(
                "bash {script} leader --ray_cluster_size={nodes}; {}",
                serve.line()
            )),
            shell(format!("bash {script} worker --ray_address={address}")),
        );
    }
    let mut leader = serving.first().cloned().unwrap_or_default();
    listen(&mut leader, engine, port);
    let mut worker = serving.get(1).cloned().unwrap_or_default();
    for (flag, value) in &mut worker.flags {
        match flag.as_str() {
            "--node-rank" => *value = Some("$(LWS_WORKER_INDEX)".to_owned()),
            "--data-parallel-start-rank" => {
                // Each worker starts where the nodes before it end.
                let local = value.clone().unwrap_or_default();
                *value = Some(format!("$(LWS_WORKER_INDEX)*{local}"));
            }
            _ => {}
        }
    }
    let worker = worker_line(&worker);
    (shell(filled(leader.line())), shell(filled(worker)))
}

/// A worker's line; a shell multiplies where a rank is a product.
fn worker_line(worker: &Command) -> String {
    let words = worker.words();
    let word = |w: &String| match w.split_once(")*") {
        Some((_, local)) => format!("$(expr $LWS_WORKER_INDEX \\* {local})"),
        None => Command::new(&[w]).line(),
    };
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// In a pod, every address is listened on.
fn listen(command: &mut Command, engine: EngineKind, port: u16) {
    if engine != EngineKind::Vllm {
        command.with("--host", "0.0.0.0");
    }
    command.with("--port", port);
}

fn pod(
    name: &str,
    image: &str,
    port: u16,
    health: &str,
    devices: u64,
    command: &[String],
    indent: usize,
) -> String {
    let words: Vec<String> = command
        .iter()
        .map(|word| format!("- {}", scalar(word)))
        .collect();
    let mut lines = vec![
        "containers:".to_owned(),
        format!("- name: {name}"),
        format!("  image: {image}"),
        "  command:".to_owned(),
    ];
    lines.extend(words.iter().map(|word| format!("  {word}")));
    if port > 0 {
        lines.push(format!("  ports:\n  - containerPort: {port}"));
        lines.push(format!(
            "  readinessProbe:\n    httpGet:\n      path: {health}\n      port: {port}\n    \
             periodSeconds: 10"
        ));
    }
    lines.push(format!(
        "  resources:\n    limits:\n      nvidia.com/gpu: \"{devices}\""
    ));
    lines.push("  volumeMounts:\n  - name: shm\n    mountPath: /dev/shm".to_owned());
    lines.push("volumes:\n- name: shm\n  emptyDir:\n    medium: Memory".to_owned());
    let pad = " ".repeat(indent);
    let text = lines.join("\n");
    text.lines().map(|line| format!("{pad}{line}\n")).collect()
}

fn service(name: &str, port: u16, group: bool) -> String {
    let role = if group { "\n    role: leader" } else { "" };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  selector:\n    \
         app: {name}{role}\n  ports:\n  - port: 80\n    targetPort: {port}\n"
    )
}

/// A YAML scalar that cannot be taken for anything but text: JSON's strings are YAML's.
fn scalar(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A name that Kubernetes accepts.
fn name(model: &str) -> String {
    let last = model
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(model);
    let letters = last.chars().map(|c| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9') => c,
        _ => '-',
    });
    let name: String = letters.take(50).collect();
    let name = name.trim_matches('-');
    if name.is_empty() {
        "model".to_owned()
    } else if name.starts_with(|c: char| c.is_ascii_digit()) {
        format!("m-{name}")
    } else {
        name.to_owned()
    }
}
