//! `nagaya build`: makes a component of a project, by the tools of its language.
//!
//! The tools are those that the author has installed; what is missing is named with the command that gets it. The contract comes
//! out of this binary, so that a component is built for what this version of the host serves.
//!
//! Invariants: `a_project_is_known_by_its_files`, `the_contract_here_is_that_of_the_repository`; on the real tools
//! `go_runs_on_the_host`, `typescript_runs_on_the_host`, `python_runs_on_the_host`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::{component, say};

/// The contract.
const WIT: [(&str, &str); 6] = [
    ("common.wit", include_str!("../../../wit/common.wit")),
    ("cluster.wit", include_str!("../../../wit/cluster.wit")),
    ("guest.wit", include_str!("../../../wit/guest.wit")),
    ("http.wit", include_str!("../../../wit/http.wit")),
    ("runtime.wit", include_str!("../../../wit/runtime.wit")),
    ("world.wit", include_str!("../../../wit/world.wit")),
];
const WORLD: &str = "reconciler";
/// The rest of WASI 0.1 in a module of Go.
const ADAPTED: &str = "wasi_snapshot_preview1";

/// Which project, and where to.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A project in Rust has a Cargo.toml, one in Go a go.mod, one in TypeScript or JavaScript a package.json and src/index.ts or
src/index.js, one in Python an app.py.

Examples:
  nagaya build                          the project in this folder; the component is named after the folder
  nagaya build controllers/shop -o shop.wasm
  nagaya build && nagaya push shop shop.wasm -n demo")]
pub(super) struct Args {
    /// The project's folder
    #[arg(value_name = "FOLDER", default_value = ".")]
    folder: PathBuf,
    /// The component [default: in the project's folder, named after it]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Rust,
    Go,
    TypeScript,
    Python,
}

/// Builds it.
pub(super) fn run(args: &Args) -> Result<()> {
    let folder = fs::canonicalize(&args.folder)
        .with_context(|| format!("cannot find the folder {}", args.folder.display()))?;
    let has = |file: &str| folder.join(file).is_file();
    let Some(language) = language(has) else {
        bail!(
            "{} has no Cargo.toml, go.mod, package.json or app.py: is it a project?",
            folder.display()
        );
    };
    let named = folder.file_name().unwrap_or_default();
    let output = match &args.output {
        Some(file) => file.clone(),
        None => folder.join(named).with_extension("wasm"),
    };
    let bytes = match language {
        Language::Rust => rust(&folder)?,
        Language::Go => go(&folder)?,
        Language::TypeScript => typescript(&folder)?,
        Language::Python => python(&folder)?,
    };
    component::check(&bytes).context("what was built is no component")?;
    fs::write(&output, &bytes).with_context(|| format!("cannot write {}", output.display()))?;
    say(&format!("{}: {} bytes\n", output.display(), bytes.len()))
}

fn language(has: impl Fn(&str) -> bool) -> Option<Language> {
    let all = [
        ("Cargo.toml", Language::Rust),
        ("go.mod", Language::Go),
        ("package.json", Language::TypeScript),
        ("app.py", Language::Python),
    ];
    all.into_iter().find(|(file, _)| has(file)).map(|(_, language)| language)
}

fn rust(folder: &Path) -> Result<Vec<u8>> {
    let build = [
        "build",
        "--release",
        "--target",
        "wasm32-wasip2",
        "--message-format",
        "json-render-diagnostics",
    ];
    let mut cargo = tool(
        folder,
        "cargo",
        "install Rust from https://rustup.rs, then: rustup target add wasm32-wasip2",
    )?;
    let output = cargo.args(build).stdout(Stdio::piped()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo build failed: {}", output.status);
    let mut built = vec![];
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
        let files = message["filenames"].as_array().cloned().unwrap_or_default();
        let files = files.iter().filter_map(|file| file.as_str()).map(PathBuf::from);
        built.extend(files.filter(|file| file.extension().is_some_and(|kind| kind == "wasm")));
    }
    match built.as_slice() {
        [file] => read(file),
        [] => bail!("cargo built no component: Cargo.toml needs `[lib] crate-type = [\"cdylib\"]`"),
        all => bail!("cargo built {} components; build one package's folder", all.len()),
    }
}

fn go(folder: &Path) -> Result<Vec<u8>> {
    let work = work()?;
    let core = work.path().join("core.wasm");
    let mut go = tool(folder, "go", "install Go 1.26 or newer")?;
    go.env("GOOS", "wasip1").env("GOARCH", "wasm");
    go.args(["build", "-buildmode=c-shared", "-ldflags=-checklinkname=0 -s -w", "-o"])
        .arg(&core)
        .arg(".");
    succeed(&mut go, "go build")?;
    wrapped(&read(&core)?, &contract(&work)?)
}

/// Makes a core module that speaks WASI 0.1 a component of the contract.
fn wrapped(core: &[u8], wit: &Path) -> Result<Vec<u8>> {
    let mut module = core.to_vec();
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(wit).context("cannot read the contract")?;
    let world =
        resolve.select_world(&[package], Some(WORLD)).context("the contract has no world")?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .context("cannot name the contract in the module")?;
    let adapter = wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER;
    let encoder = ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| encoder.adapter(ADAPTED, adapter))
        .context("the module does not fit the contract")?;
    encoder.validate(true).encode().context("the module does not fit the contract")
}

fn typescript(folder: &Path) -> Result<Vec<u8>> {
    let work = work()?;
    let (bundle, out) = (work.path().join("bundle.js"), work.path().join("component.wasm"));
    let entry =
        ["src/index.ts", "src/index.js"].into_iter().find(|file| folder.join(file).is_file());
    let entry = entry.context("there is neither src/index.ts nor src/index.js")?;
    let bin = folder.join("node_modules/.bin");
    let script = |name: &str, advice: &str| {
        let file = bin.join(name);
        ensure!(file.is_file(), "{name} is not installed: {advice}");
        let mut command = Command::new(file);
        command.current_dir(folder);
        Ok(command)
    };
    if folder.join("tsconfig.json").is_file() {
        succeed(
            &mut script("tsc", "npm install --save-dev typescript@5.9.3, or npm install")?,
            "tsc",
        )?;
    }
    let mut esbuild = script("esbuild", "npm install --save-dev esbuild@0.28.2, or npm install")?;
    esbuild.arg(entry).args([
        "--bundle",
        "--format=esm",
        "--target=es2023",
        "--conditions=nagaya",
        "--external:nagaya:*",
        "--log-level=warning",
    ]);
    succeed(esbuild.arg(format!("--outfile={}", bundle.display())), "esbuild")?;
    let advice = "npm install --save-dev componentize-qjs@0.4.5, or npm install";
    let mut componentize = script("componentize-qjs", advice)?;
    componentize.arg("-w").arg(contract(&work)?).args(["-n", WORLD, "--sync", "--opt-size", "-j"]);
    succeed(componentize.arg(&bundle).arg("-o").arg(&out), "componentize-qjs")?;
    read(&out)
}

fn python(folder: &Path) -> Result<Vec<u8>> {
    let work = work()?;
    let out = work.path().join("component.wasm");
    let venv = folder.join(".venv");
    let own = venv.join("bin/componentize-py");
    let advice = "python3 -m venv .venv && .venv/bin/pip install componentize-py==0.25.1";
    let mut componentize = if own.is_file() {
        let mut command = Command::new(own);
        command.current_dir(folder);
        command
    } else {
        tool(folder, "componentize-py", advice)?
    };
    componentize.arg("-d").arg(contract(&work)?).args(["-w", WORLD, "componentize", "-p", "."]);
    for lib in fs::read_dir(venv.join("lib")).into_iter().flatten().flatten() {
        let packages = lib.path().join("site-packages");
        if packages.is_dir() {
            componentize.arg("-p").arg(packages);
        }
    }
    succeed(componentize.arg("app").arg("-o").arg(&out), "componentize-py")?;
    read(&out)
}

/// A tool that the author has installed, or how to get it.
fn tool(folder: &Path, name: &str, advice: &str) -> Result<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|place| place.join(name)).find(|file| file.is_file());
    let file = found.with_context(|| format!("{name} is not installed: {advice}"))?;
    let mut command = Command::new(file);
    command.current_dir(folder);
    Ok(command)
}

/// Runs a tool; what it says goes to the author, and not among what this command answers.
fn succeed(command: &mut Command, name: &str) -> Result<()> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {name}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    eprint!("{}", String::from_utf8_lossy(&said));
    bail!("{name} failed: {}", output.status)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// A folder for what lies between the steps; it goes with this value.
fn work() -> Result<TempDir> {
    tempfile::tempdir().context("cannot make a folder for what lies between the steps")
}

/// The contract, as files of a folder of it.
fn contract(work: &TempDir) -> Result<PathBuf> {
    let folder = work.path().join("wit");
    fs::create_dir(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for (name, text) in WIT {
        fs::write(folder.join(name), text)
            .with_context(|| format!("cannot write {name} of the contract"))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_known_by_its_files() {
        let of = |files: &[&str]| language(|file| files.contains(&file));
        assert_eq!(of(&["Cargo.toml", "package.json"]), Some(Language::Rust));
        assert_eq!(of(&["go.mod"]), Some(Language::Go));
        assert_eq!(of(&["package.json"]), Some(Language::TypeScript));
        assert_eq!(of(&["app.py"]), Some(Language::Python));
        assert_eq!(of(&["README.md"]), None);
    }

    #[test]
    fn the_contract_here_is_that_of_the_repository() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
        let mut there: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".wit"))
            .collect();
        there.sort();
        let mut here = WIT.map(|(name, _)| name.to_owned());
        here.sort();
        assert_eq!(there, here);
    }
}
