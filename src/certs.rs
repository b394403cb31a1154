//! `baton certs`: an authority and certificates for a cluster, in one directory.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io::Write,
    ops::Range,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use baton_protocol::Role;
use baton_trust::authority::{Authority, Bearer, Issued, file_name};

use crate::{args, terminal::say};

/// Every certificate is good on its own machine.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The authority outlives what it signs.
const AUTHORITY_DAYS: u32 = 3650;

/// Certificates are good a little before they are made: clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// One certificate with its key, and where both go: `NAME.crt` and `NAME.key`.
struct Pair {
    name: String,
    issued: Issued,
}

/// Makes everything, writes it, and says what to do with it.
///
/// # Errors
/// When a file is there already, which is left as it is, or cannot be written.
pub fn init(args: &args::CertsInit) -> Result<()> {
    let bearers = bearers(&args.roles)?;
    let pairs = make(args, &bearers)?;
    write(&args.out, &pairs)?;
    explain(args, &pairs);
    Ok(())
}

/// Makes new certificates and keys in place of those that the directory's authority has signed.
///
/// # Errors
/// When the authority or a certificate of it cannot be read, or no new one can be made or written.
pub fn renew(args: &args::CertsRenew) -> Result<()> {
    let read = |name: &str| {
        let path = args.dir.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let authority = Issued { cert: read("ca.crt")?, key: read("ca.key")? };
    let authority = Authority::open(authority).with_context(|| format!("{}", args.dir.display()))?;
    let valid = validity(args.days)?;
    let mut pairs = Vec::new();
    for name in signed(&args.dir)? {
        let renewed = || -> Result<Issued> {
            let (bearer, mut names) = authority.bearer(&read(&format!("{name}.crt"))?)?;
            names.extend(args.names.iter().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>());
            Ok(authority.issue(&bearer, &names, valid.clone())?)
        };
        let issued = renewed().with_context(|| format!("cannot renew the certificate {name}"))?;
        pairs.push(Pair { name, issued });
    }
    ensure!(!pairs.is_empty(), "{} has no certificate beside the authority's", args.dir.display());
    pairs.iter().try_for_each(|pair| replace(&args.dir, pair))?;
    let names: Vec<_> = pairs.iter().map(|pair| pair.name.as_str()).collect();
    say(format_args!(
        "{}: new certificates {}, good for {} days",
        args.dir.display(),
        names.join(", "),
        args.days
    ));
    say("nodes read them within a second of their files' change; copy them to other machines");
    Ok(())
}

/// Names of the pairs in a directory, the authority's left out.
fn signed(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(OsStr::to_str).filter(|name| *name != "ca");
        let is_pair = path.extension() == Some(OsStr::new("crt")) && path.with_extension("key").exists();
        names.extend(name.filter(|_| is_pair).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Puts a pair in place of that of its name, each file at once. Whoever reads between the two
/// finds that they do not fit, and reads again.
fn replace(dir: &Path, Pair { name, issued }: &Pair) -> Result<()> {
    for (ending, text) in [("key", &issued.key), ("crt", &issued.cert)] {
        let path = dir.join(format!("{name}.{ending}"));
        let mut fresh = tempfile::NamedTempFile::new_in(dir)?;
        fresh.write_all(text.as_bytes())?;
        fresh.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// So many days from now.
fn validity(days: u32) -> Result<Range<SystemTime>> {
    ensure!((1..=36_500).contains(&days), "--days must be between 1 and 36500");
    let start = SystemTime::now() - CLOCK_SKEW;
    let end = start.checked_add(CLOCK_SKEW + Duration::from_secs(u64::from(days) * 86_400));
    Ok(start..end.context("--days is too long")?)
}

/// One bearer a `--role`, or one a role; and etcd.
fn bearers(wanted: &[String]) -> Result<Vec<Bearer>> {
    let parse =
        |text: &String| -> Result<BTreeSet<Role>> { text.split('+').map(|name| Ok(name.parse()?)).collect() };
    let mut sets: Vec<BTreeSet<Role>> = wanted.iter().map(parse).collect::<Result<_>>()?;
    if sets.is_empty() {
        sets = Role::ALL.into_iter().map(|role| BTreeSet::from([role])).collect();
    }
    let count = sets.len();
    sets.sort();
    sets.dedup();
    ensure!(sets.len() == count, "--role names the same roles twice");
    Ok(sets.into_iter().map(Bearer::Nodes).chain([Bearer::Etcd]).collect())
}

fn make(args: &args::CertsInit, bearers: &[Bearer]) -> Result<Vec<Pair>> {
    let valid = validity(args.days)?;
    let authority = Authority::new(&args.cluster, validity(args.days.max(AUTHORITY_DAYS))?)?;
    let names: Vec<String> = LOOPBACK.into_iter().map(str::to_owned).chain(args.names.clone()).collect();
    let mut pairs = vec![Pair { name: "ca".to_owned(), issued: authority.itself() }];
    for bearer in bearers {
        let name = match bearer {
            Bearer::Nodes(roles) => file_name(roles),
            Bearer::Etcd => "etcd".to_owned(),
        };
        let issued = authority
            .issue(bearer, &names, valid.clone())
            .with_context(|| format!("cannot make the certificate {name} for {}", names.join(", ")))?;
        pairs.push(Pair { name, issued });
    }
    Ok(pairs)
}

/// Writes files that nobody else may read; nothing if one of them is there already.
fn write(out: &Path, pairs: &[Pair]) -> Result<()> {
    let files: Vec<_> = pairs
        .iter()
        .flat_map(|Pair { name, issued }| {
            [(out.join(format!("{name}.crt")), &issued.cert), (out.join(format!("{name}.key")), &issued.key)]
        })
        .collect();
    if let Some((there, _)) = files.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        bail!("{} is there already; nothing was written: choose another --out", there.display());
    }
    let mut directory = DirBuilder::new();
    directory
        .recursive(true)
        .mode(0o700)
        .create(out)
        .with_context(|| format!("cannot make {}", out.display()))?;
    for (path, text) in &files {
        let created: std::io::Result<File> =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        created
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn explain(args: &args::CertsInit, pairs: &[Pair]) {
    let out = args.out.display();
    let names: Vec<_> = pairs.iter().map(|pair| pair.name.as_str()).filter(|name| *name != "ca").collect();
    say(format_args!("{out}: authority of cluster {:?}, certificates {}", args.cluster, names.join(", ")));
    let reached = LOOPBACK.into_iter().chain(args.names.iter().map(String::as_str)).collect::<Vec<_>>();
    say(format_args!("good for {} days, at {}", args.days, reached.join(", ")));
    say(format_args!("\nnext:"));
    say(format_args!(
        "1. copy ca.crt and a node's own .crt and .key to its machine, readable by baton alone"
    ));
    say(format_args!("2. in the configuration of every node ({{roles}} is filled in by each process):\n"));
    say(format_args!("   cluster = {:?}\n", args.cluster));
    say(format_args!("   [tls]"));
    say(format_args!("   ca = \"{out}/ca.crt\""));
    say(format_args!("   cert = \"{out}/{{roles}}.crt\""));
    say(format_args!("   key = \"{out}/{{roles}}.key\""));
    say(format_args!("\n3. put ca.key away where no node can read it: it makes members of the cluster"));
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn wanted(out: &Path, roles: &[&str]) -> args::CertsInit {
        args::CertsInit {
            cluster: "c".to_owned(),
            out: out.to_owned(),
            names: vec!["10.0.0.1".to_owned(), "node.example".to_owned()],
            roles: roles.iter().map(|&role| role.to_owned()).collect(),
            days: 3,
        }
    }

    #[test]
    fn files_are_private_and_never_written_twice() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("certs");
        init(&wanted(&out, &[])).unwrap();
        let mut found: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap()).collect();
        found.sort_by_key(fs::DirEntry::file_name);
        let names: Vec<_> = found.iter().map(|entry| entry.file_name().into_string().unwrap()).collect();
        let expected = ["ca", "coordinator", "decode", "etcd", "prefill"];
        assert_eq!(names, expected.map(|name| [format!("{name}.crt"), format!("{name}.key")]).concat());
        for entry in &found {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        }
        assert_eq!(out.metadata().unwrap().permissions().mode() & 0o777, 0o700);

        let before = fs::read(out.join("decode.key")).unwrap();
        fs::remove_file(out.join("ca.crt")).unwrap();
        let error = init(&wanted(&out, &[])).unwrap_err().to_string();
        assert!(error.contains("ca.key is there already"), "{error}");
        assert!(!out.join("ca.crt").exists());
        assert_eq!(fs::read(out.join("decode.key")).unwrap(), before);
    }

    #[test]
    fn renewed_certificates_are_for_whom_the_old_ones_were() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        init(&wanted(dir.path(), &["prefill+decode", "coordinator"])).unwrap();
        let names = ["coordinator", "etcd", "prefill-decode"];
        let [authority, old] = [&["ca"][..], &names].map(|names| {
            names
                .iter()
                .flat_map(|name| [read(&format!("{name}.crt")), read(&format!("{name}.key"))])
                .collect::<Vec<_>>()
        });
        let args = args::CertsRenew {
            dir: dir.path().to_owned(),
            names: vec!["10.0.0.2".to_owned(), "::1".to_owned()],
            days: 9,
        };
        renew(&args).unwrap();
        assert_eq!([read("ca.crt"), read("ca.key")], authority[..]);
        let authority = Authority::open(Issued { cert: read("ca.crt"), key: read("ca.key") }).unwrap();
        for (at, name) in names.into_iter().enumerate() {
            let [cert, key] = ["crt", "key"].map(|ending| read(&format!("{name}.{ending}")));
            assert!(cert != old[2 * at] && key != old[2 * at + 1]);
            let before = authority.bearer(&old[2 * at]).unwrap();
            let expected = ["localhost", "127.0.0.1", "::1", "10.0.0.1", "node.example", "10.0.0.2"];
            assert_eq!(authority.bearer(&cert).unwrap(), (before.0, expected.map(str::to_owned).to_vec()));
            let mode = fs::metadata(dir.path().join(format!("{name}.key"))).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(
            renew(&args::CertsRenew { days: AUTHORITY_DAYS + 1, ..args }).is_err(),
            "longer than the authority"
        );
    }

    #[test]
    fn what_another_authority_has_signed_is_not_renewed() {
        let [dir, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        init(&wanted(dir.path(), &["decode"])).unwrap();
        init(&args::CertsInit { cluster: "d".to_owned(), ..wanted(other.path(), &["decode"]) }).unwrap();
        let before = fs::read(dir.path().join("decode.key")).unwrap();
        let refused = || {
            let args = args::CertsRenew { dir: dir.path().to_owned(), names: Vec::new(), days: 9 };
            let error = format!("{:#}", renew(&args).unwrap_err());
            assert_eq!(fs::read(dir.path().join("decode.key")).unwrap(), before);
            error
        };
        fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).unwrap();
        assert!(refused().contains("the key is not the authority's"));
        fs::copy(other.path().join("ca.crt"), dir.path().join("ca.crt")).unwrap();
        assert!(refused().contains("a certificate of another authority"));
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(refused().contains("ca.key"));
    }

    #[test]
    fn several_roles_make_one_certificate() {
        let dir = tempfile::tempdir().unwrap();
        init(&wanted(dir.path(), &["decode+prefill", "coordinator"])).unwrap();
        assert!(dir.path().join("prefill-decode.crt").exists());
        assert!(!dir.path().join("decode.crt").exists());
    }

    #[test]
    fn what_cannot_be_certified_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for roles in [&["king"][..], &[""], &["decode", "decode"]] {
            assert!(init(&wanted(dir.path(), roles)).is_err(), "{roles:?}");
        }
        assert!(init(&args::CertsInit { days: 0, ..wanted(dir.path(), &[]) }).is_err());
        assert!(init(&args::CertsInit { cluster: "a/b".to_owned(), ..wanted(dir.path(), &[]) }).is_err());
        assert!(init(&args::CertsInit { names: vec!["ä".to_owned()], ..wanted(dir.path(), &[]) }).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
