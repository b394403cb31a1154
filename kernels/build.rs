//! Compiles `cuda/*.cu` with nvcc when feature `cuda` is on: one fat binary a
//! file, or one for each dtype if the file includes `element.cuh`, embedded in the
//! library by the table this writes.
//!
//! `BATON_CUDA_ARCHS` (`90a,80,89,ptx80` unless set) says for which cards.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::SystemTime,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const ARCHS: &str = "90a,80,89,ptx80";

/// Names in `src/cuda/half.rs`. `element.cuh` wants to know the second.
const DTYPES: [&str; 2] = ["Bf16", "F16"];

fn main() -> Result<(), Failure> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    for variable in ["BATON_CUDA_ARCHS", "NVCC", "CUDA_HOME"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let crate_folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let source = crate_folder.join("cuda");
    println!("cargo::rerun-if-changed={}", source.display());
    let files = listed(&source)?;
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let compiler = Compiler {
        nvcc: find_nvcc(&crate_folder)?,
        archs: env::var("BATON_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.to_owned()),
        includes: vec![source],
        out: PathBuf::from(env::var("OUT_DIR")?),
        // A header may be included by any source.
        headers_changed: newest(files.iter().filter(|file| !is_source(file)))?,
    };
    let mut jobs = Vec::new();
    for source in files.into_iter().filter(|file| is_source(file)) {
        match includes(&source, "element.cuh")? {
            true => jobs.extend(DTYPES.map(|dtype| Job { source: source.clone(), dtype: Some(dtype) })),
            false => jobs.push(Job { source, dtype: None }),
        }
    }
    compile_all(&compiler, &jobs)?;
    write_table(&compiler, &jobs)
}

/// A source, and what it is to compute in if that makes a difference.
struct Job {
    source: PathBuf,
    dtype: Option<&'static str>,
}

struct Compiler {
    nvcc: PathBuf,
    archs: String,
    includes: Vec<PathBuf>,
    out: PathBuf,
    headers_changed: SystemTime,
}

// === impl Compiler ===

impl Compiler {
    fn image(&self, Job { source, dtype }: &Job) -> PathBuf {
        let dtype = dtype.map(|dtype| format!("{dtype}.")).unwrap_or_default();
        self.out.join(name(source)).with_extension(format!("{dtype}{}.fatbin", self.archs.replace(',', "_")))
    }

    /// Compiles one file unless its image is newer than it, and gives what
    /// nvcc said of spilled registers.
    fn compile(&self, job: &Job) -> Result<Vec<String>, Failure> {
        let (source, image) = (&job.source, self.image(job));
        if let Ok(made) = fs::metadata(&image).and_then(|image| image.modified())
            && made > self.headers_changed
            && made > fs::metadata(source)?.modified()?
        {
            return Ok(Vec::new());
        }
        let partial = image.with_extension("partial");
        let mut command = Command::new(&self.nvcc);
        command.args(["-fatbin", "-std=c++17", "-O3", "-Werror", "all-warnings"]);
        command.args(["-Xptxas", "-v", "--expt-relaxed-constexpr", "-o"]).arg(&partial).arg(source);
        if job.dtype == Some("F16") {
            command.arg("-DBATON_F16");
        }
        for include in &self.includes {
            command.arg("-I").arg(include);
        }
        for arch in self.archs.split(',') {
            command.arg("-gencode").arg(match arch.strip_prefix("ptx") {
                Some(arch) => format!("arch=compute_{arch},code=compute_{arch}"),
                None => format!("arch=compute_{arch},code=sm_{arch}"),
            });
        }
        let output = command.output().map_err(|error| format!("{}: {error}", self.nvcc.display()))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(format!("nvcc failed on {}:\n{said}", source.display()).into());
        }
        fs::rename(&partial, &image)?;
        Ok(spills(&format!("{}.cu {}", name(source), job.dtype.unwrap_or_default()), &said))
    }
}

/// The kernels that keep registers in memory, by ptxas's report.
fn spills(file: &str, said: &str) -> Vec<String> {
    let mut kernel = "";
    let mut found = Vec::new();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split_once("' for").map_or(rest, |(kernel, _)| kernel);
        }
        if line.contains("bytes spill stores") && !line.contains(" 0 bytes spill stores") {
            found.push(format!("{file}: {kernel}: {}", line.trim()));
        }
    }
    found
}

fn compile_all(compiler: &Compiler, jobs: &[Job]) -> Result<(), Failure> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let threads = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = compiler.compile(job);
                    results.lock().expect("no thread panics while it holds this").push(result);
                }
            });
        }
    });
    for result in results.into_inner()? {
        for spill in result? {
            println!("cargo::warning={spill}");
        }
    }
    Ok(())
}

/// Writes the Rust table of images that `src/cuda/image.rs` includes.
fn write_table(compiler: &Compiler, jobs: &[Job]) -> Result<(), Failure> {
    let mut table = String::from("&[\n");
    for job in jobs {
        let (name, image) = (name(&job.source), compiler.image(job));
        let dtype = job.dtype.map_or("None".to_owned(), |dtype| format!("Some(Dtype::{dtype})"));
        let bytes = format!("&Aligned(*include_bytes!({image:?}))");
        table += &format!("    Image {{ source: {name:?}, dtype: {dtype}, bytes: {bytes} }},\n");
    }
    table.push_str("]\n");
    fs::write(compiler.out.join("images.rs"), table)?;
    Ok(())
}

/// `$NVCC`, else that of `$CUDA_HOME`, of `scripts/setup-cuda`, or on the path.
fn find_nvcc(crate_folder: &Path) -> Result<PathBuf, Failure> {
    if let Some(nvcc) = env::var_os("NVCC") {
        return Ok(PathBuf::from(nvcc));
    }
    let folders = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin")).into_iter();
    let folders = folders.chain([crate_folder.join("../.cuda/nvidia/cu13/bin")]);
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = folders.chain(env::split_paths(&path));
    let found = folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file());
    found.ok_or_else(|| "feature `cuda` needs nvcc: run scripts/setup-cuda, or set NVCC or CUDA_HOME".into())
}

fn listed(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { files.extend(listed(&path)?) } else { files.push(path) }
    }
    files.sort();
    Ok(files)
}

fn newest<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<SystemTime, Failure> {
    let mut newest = fs::metadata("build.rs")?.modified()?;
    for file in files {
        newest = newest.max(fs::metadata(file)?.modified()?);
    }
    Ok(newest)
}

/// Whether `file` includes `header`, itself or through others.
fn includes(file: &Path, header: &str) -> Result<bool, Failure> {
    let text = fs::read_to_string(file)?;
    for line in text.lines() {
        let Some(name) = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) else {
            continue;
        };
        if name == header || includes(&file.with_file_name(name), header)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_source(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "cu")
}

fn name(source: &Path) -> String {
    source.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
