//! What the tests need before they can start: both programs, the real model and a Python environment.
//!
//! Everything is made once and kept in the target folder; a file lock keeps test programs that run side by side from
//! making it twice.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The two programs.
#[derive(Debug)]
pub struct Programs {
    /// The coordinator and every command a user types.
    pub brigade: PathBuf,
    /// The worker.
    pub worker: PathBuf,
}

/// Builds both programs, in the profile that the tests themselves were built with, and says where they are.
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let _lock = lock("programs");
        let target = target_folder();
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build
            .args(["build", "--quiet", "--release", "--locked", "--workspace", "--bins", "--target-dir"])
            .arg(&target);
        // What cargo tells a test of its own package would make build scripts that look at it run again.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| describes_this_package(&name.to_string_lossy()))
        {
            build.env_remove(name);
        }
        run(build.current_dir(repository()), "build both programs");
        let folder = target.join("release");
        Programs { brigade: folder.join("brigade"), worker: folder.join("brigade-worker") }
    })
}

fn describes_this_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|prefix| variable.starts_with(prefix))
}

/// The real model, SmolLM2-135M-Instruct as Q4_1; fetched if it is not there.
pub fn smollm2() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let _lock = lock("model");
        let folder = target_folder().join("models");
        run(
            Command::new(repository().join("deploy/fetch-model.sh")).arg(&folder),
            "fetch SmolLM2 with deploy/fetch-model.sh",
        );
        folder.join("SmolLM2-135M-Instruct.Q4_1.gguf")
    })
}

/// The real model with its weights widened exactly to `f32`, or rounded to `f16`; made if it is not there.
pub fn smollm2_as(kind: &str) -> PathBuf {
    let file = target_folder().join("models").join(format!("SmolLM2-135M-Instruct.{kind}.gguf"));
    let python = python();
    let _lock = lock("model");
    if !file.exists() {
        let partial = file.with_extension("partial");
        let mut convert = Command::new(python);
        convert.arg(repository().join("tests/python/dequantise.py")).arg(smollm2_unlocked()).arg(&partial);
        run(convert.args(["--type", kind]), "dequantise SmolLM2");
        std::fs::rename(&partial, &file).expect("the partial file was just written");
    }
    file
}

/// The real model, reshaped by `tests/python/reshape.py` with these arguments; made if it is not there.
pub fn smollm2_reshaped(name: &str, arguments: &[&str]) -> PathBuf {
    let file = target_folder().join("models").join(format!("SmolLM2-135M-Instruct.{name}.gguf"));
    let python = python();
    let _lock = lock("model");
    if !file.exists() {
        let partial = file.with_extension("partial");
        let mut reshape = Command::new(python);
        reshape.arg(repository().join("tests/python/reshape.py")).arg(smollm2_unlocked()).arg(&partial);
        run(reshape.args(arguments), "reshape SmolLM2");
        std::fs::rename(&partial, &file).expect("the partial file was just written");
    }
    file
}

fn smollm2_unlocked() -> PathBuf {
    let file = target_folder().join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !file.exists() {
        let folder = target_folder().join("models");
        run(Command::new(repository().join("deploy/fetch-model.sh")).arg(folder), "fetch SmolLM2");
    }
    file
}

/// The environment variable that asks for llama.cpp's server to be compiled.
const LLAMA_SERVER: &str = "BRIGADE_LLAMA_SERVER";

/// A Python interpreter with the packages of `tests/python/requirements.txt`; the environment is made if it is not there.
pub fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON
        .get_or_init(|| environment("python", "requirements.txt").unwrap_or_else(|reason| panic!("{reason}")))
}

/// A Python interpreter with the server of `llama-cpp-python`. The environment is made where it is asked for by
/// `BRIGADE_LLAMA_SERVER`: compiling llama.cpp takes many minutes.
///
/// # Errors
/// Where it is not there or cannot be made, for people.
pub fn llama_server() -> Result<PathBuf, String> {
    let python = target_folder().join("llama-server/bin/python");
    if !python.exists() && std::env::var_os(LLAMA_SERVER).is_none() {
        return Err(format!("it takes many minutes to compile: ask for it with {LLAMA_SERVER}=1"));
    }
    environment("llama-server", "llama_server_requirements.txt")
}

/// The interpreter of a Python environment in the target folder, with the packages of a file in `tests/python`.
fn environment(name: &str, requirements: &str) -> Result<PathBuf, String> {
    let _lock = lock(name);
    let folder = target_folder().join(name);
    let python = folder.join("bin/python");
    let wanted_file = repository().join("tests/python").join(requirements);
    let wanted = std::fs::read_to_string(&wanted_file)
        .map_err(|error| format!("failed to read {}: {error}", wanted_file.display()))?;
    let made = folder.join("made-from.txt");
    if std::fs::read_to_string(&made).ok().as_deref() == Some(wanted.as_str()) {
        return Ok(python);
    }
    attempt(
        Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder),
        "make a Python environment (Debian: apt-get install python3-venv)",
    )?;
    attempt(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(&wanted_file)
            // llama.cpp for text alone, and for any processor: some virtual machines name instructions that end a program.
            .env("CMAKE_ARGS", "-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF"),
        "install the Python packages of the tests",
    )?;
    std::fs::write(&made, &wanted).map_err(|error| format!("failed to write {}: {error}", made.display()))?;
    Ok(python)
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the repository")
}

/// The target folder that this test program lies in.
pub fn target_folder() -> PathBuf {
    let program = std::env::current_exe().expect("the system knows this program's path");
    let release = program.ancestors().find(|folder| folder.ends_with("release"));
    release
        .and_then(Path::parent)
        .unwrap_or_else(|| {
            panic!("{} does not lie in target/release: run `cargo test --release`", program.display())
        })
        .to_owned()
}

/// Held until it is dropped; the system lets go of it if this process ends.
fn lock(name: &str) -> File {
    let path = target_folder().join(format!("tests-{name}.lock"));
    let file =
        File::create(&path).unwrap_or_else(|error| panic!("failed to make {}: {error}", path.display()));
    file.lock().unwrap_or_else(|error| panic!("failed to lock {}: {error}", path.display()));
    file
}

fn run(command: &mut Command, what: &str) {
    attempt(command, what).unwrap_or_else(|reason| panic!("{reason}"));
}

fn attempt(command: &mut Command, what: &str) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("failed to {what}: {command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "failed to {what}: {command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}
