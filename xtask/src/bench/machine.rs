//! What a report says about where it was made.

use std::fs;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// The machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Machine {
    pub(crate) os: String,
    pub(crate) arch: String,
    /// The processor's model, `unknown` where nothing names it.
    pub(crate) cpu: String,
    /// Threads the machine runs at once.
    pub(crate) cores: usize,
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Self {
        Self {
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            cpu: cpu().unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// The version line of the compiler that cargo uses.
pub(crate) fn rustc() -> String {
    let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(program);
    command
        .arg("--version")
        .current_dir(crate::workspace::root());
    first_line_of(&mut command).unwrap_or_else(|| "unknown".to_owned())
}

fn cpu() -> Option<String> {
    if let Ok(text) = fs::read_to_string("/proc/cpuinfo") {
        return cpu_model(&text);
    }
    // macOS has it here, others do not have the program.
    first_line_of(Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"]))
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut models =
        fields.filter(|(key, _)| ["model name", "Model", "cpu model"].contains(&key.trim()));
    models.next().map(|(_, model)| model.trim().to_owned())
}

fn first_line_of(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.trim();
    (output.status.success() && !line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_found() {
        let text = "processor\t: 0\nvendor_id\t: X\nmodel\t\t: 1\nmodel name\t: Fast 9000: 3 GHz\n";
        assert_eq!(cpu_model(text).as_deref(), Some("Fast 9000: 3 GHz"));
        assert_eq!(cpu_model("processor : 0\n"), None);
    }
}
