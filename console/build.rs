//! Builds the pages with npm, in the output directory, and writes a table of them for `src/lib.rs`.
//! Without npm, or what it fetches, the crate is built all the same and says why it has no pages.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// What the pages are made of.
const SOURCES: [&str; 6] =
    ["package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "index.html", "web"];
/// Whose packages are installed.
const INSTALLED: &str = "node_modules/installed.json";

type Outcome = Result<(), String>;

fn main() -> io::Result<()> {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let work = out.join("work");
    let built =
        copy(&work).map_err(|error| format!("its sources cannot be copied: {error}")).and_then(|()| {
            install(&work)?;
            npm(&work, &["run", "--silent", "build"])
        });
    let why = built.err();
    if let Some(why) = &why {
        // Tried again by the next build: npm may be there then.
        println!("cargo::rerun-if-changed=never-there");
        println!(
            "cargo::warning=the console is not in this build: {}",
            why.lines().next().unwrap_or_default()
        );
    }
    let mut pages = Vec::new();
    if why.is_none() {
        list(&work.join("dist"), "", &mut pages)?;
    }
    let table = format!(
        "const PAGES: &[(&str, &[u8])] = &[{}];\nconst MISSING: &str = {:?};\n",
        pages.join(", "),
        why.unwrap_or_default()
    );
    fs::write(out.join("pages.rs"), table)
}

/// Copies the sources, those that are gone not left behind.
fn copy(work: &Path) -> io::Result<()> {
    for source in SOURCES {
        let (from, to) = (Path::new(source), work.join(source));
        if from.is_dir() {
            if to.exists() {
                fs::remove_dir_all(&to)?;
            }
            copy_all(from, &to)?;
        } else {
            fs::create_dir_all(work)?;
            fs::copy(from, to)?;
        }
    }
    Ok(())
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() { copy_all(&path, &to)? } else { fs::copy(path, to).map(drop)? }
    }
    Ok(())
}

/// Installs what the lock file names, unless it is there.
fn install(work: &Path) -> Outcome {
    let lock = fs::read(work.join("package-lock.json")).map_err(|error| error.to_string())?;
    if fs::read(work.join(INSTALLED)).is_ok_and(|installed| installed == lock) {
        return Ok(());
    }
    // Nothing that a package brings is run; a registry that does not answer is not waited for long.
    let quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"];
    let patience = ["--fetch-retries=1", "--fetch-timeout=30000"];
    npm(work, &[&["ci"][..], &quiet, &patience].concat())?;
    fs::write(work.join(INSTALLED), lock).map_err(|error| error.to_string())
}

fn npm(work: &Path, args: &[&str]) -> Outcome {
    let ran = Command::new("npm").args(args).current_dir(work).output();
    let output = ran.map_err(|error| format!("npm cannot be run ({error}); scripts/setup installs it"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).trim().to_owned());
    Err(format!("`npm {}` failed: {}", args.first().copied().unwrap_or_default(), said.join("\n").trim()))
}

/// Every file below, as `("its/path", include_bytes!("…"))`.
fn list(dir: &Path, prefix: &str, pages: &mut Vec<String>) -> io::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
        if path.is_dir() {
            list(&path, &format!("{name}/"), pages)?;
        } else {
            pages.push(format!("({name:?}, include_bytes!({:?}))", path.display().to_string()));
        }
    }
    Ok(())
}
