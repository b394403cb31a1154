//! What the environment says about the Hub, read as Python's `huggingface_hub` reads it.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use ureq::tls::{PemItem, RootCerts, parse_pem};

use super::error::HubError;

const ENDPOINT: &str = "https://huggingface.co";

/// Where the Hub and its cache are.
pub struct Settings {
    /// `HF_ENDPOINT`: base URL, without a slash at its end.
    pub endpoint: String,
    /// `HF_TOKEN`, or else what the file `HF_TOKEN_PATH` or `$HF_HOME/token` holds.
    pub token: Option<String>,
    /// `HF_HUB_CACHE`, or else `$HF_HOME/hub`.
    pub cache: PathBuf,
    /// `HF_HUB_OFFLINE`: only the cache is used.
    pub offline: bool,
    /// `SSL_CERT_FILE`: certificates to trust; else Mozilla's, which are in the program.
    pub roots: RootCerts,
    /// Wait before the second attempt; it doubles for each further one.
    pub first_wait: Duration,
}

// === impl Settings ===

impl Settings {
    /// Reads the variables through `variable`.
    ///
    /// # Errors
    /// When certificates that it names cannot be read, or there is no home.
    pub fn read(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        let path = |name| variable(name).map(PathBuf::from);
        let text = |name| variable(name).map(|value| value.to_string_lossy().trim().to_owned());
        let set = |name| {
            text(name).is_some_and(|value| {
                ["1", "ON", "YES", "TRUE"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
            })
        };
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(path("HOME")?.join(".cache").join("huggingface")))
            .ok_or(HubError::NoHome)?;
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let from_file = || fs::read_to_string(token_file).ok().map(|token| token.trim().to_owned());
        let token = text("HF_TOKEN").or_else(from_file).filter(|token| !token.is_empty());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| home.join("hub")),
            offline: set("HF_HUB_OFFLINE") || set("TRANSFORMERS_OFFLINE"),
            roots: path("SSL_CERT_FILE").map_or(Ok(RootCerts::WebPki), |path| roots(&path))?,
            first_wait: Duration::from_millis(500),
        })
    }
}

/// The certificates of a PEM file.
fn roots(path: &Path) -> Result<RootCerts, HubError> {
    let refused = |reason: String| HubError::Certificates { path: path.to_owned(), reason };
    let pem = fs::read(path).map_err(|error| refused(error.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| refused(error.to_string()))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(refused("it holds no certificate".to_owned()));
    }
    Ok(RootCerts::from(certificates))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Settings {
        let find = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Settings::read(&find).unwrap()
    }

    #[test]
    fn each_variable_has_its_place() {
        let plain = read(&[("HOME", "/home/me"), ("HF_ENDPOINT", ""), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, PathBuf::from("/home/me/.cache/huggingface/hub"));
        assert!(!plain.offline && plain.token.is_none());

        let set = read(&[
            ("HOME", "/home/me"),
            ("XDG_CACHE_HOME", "/var/cache"),
            ("HF_ENDPOINT", "http://mirror:8080/"),
            ("HF_TOKEN", " secret\n"),
            ("HF_HUB_OFFLINE", "true"),
        ]);
        assert_eq!(set.endpoint, "http://mirror:8080");
        assert_eq!(set.token.as_deref(), Some("secret"));
        assert_eq!(set.cache, PathBuf::from("/var/cache/huggingface/hub"));
        assert!(set.offline);

        let home = [("HOME", "/home/me"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/hf")];
        assert_eq!(read(&home).cache, PathBuf::from("/hf/hub"));
        let cache = [home[0], home[1], home[2], ("HF_HUB_CACHE", "/elsewhere")];
        assert_eq!(read(&cache).cache, PathBuf::from("/elsewhere"));
    }

    #[test]
    fn the_token_may_lie_in_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().to_str().unwrap();
        fs::write(directory.path().join("token"), "from-file\n").unwrap();
        fs::write(directory.path().join("other"), "from-other").unwrap();
        let other = directory.path().join("other");
        assert_eq!(read(&[("HF_HOME", home)]).token.as_deref(), Some("from-file"));
        let named = [("HF_HOME", home), ("HF_TOKEN_PATH", other.to_str().unwrap())];
        assert_eq!(read(&named).token.as_deref(), Some("from-other"));
        assert_eq!(read(&[("HF_HOME", home), ("HF_TOKEN", "set")]).token.as_deref(), Some("set"));
    }

    #[test]
    fn certificates_that_cannot_be_read_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("certificates.pem");
        let read = |path: PathBuf| {
            Settings::read(&|name| match name {
                "HOME" => Some(OsString::from("/home/me")),
                "SSL_CERT_FILE" => Some(path.clone().into_os_string()),
                _ => None,
            })
        };
        fs::write(&file, "no certificate").unwrap();
        assert!(matches!(read(file), Err(HubError::Certificates { .. })));
        assert!(matches!(read(PathBuf::from("/nonexistent")), Err(HubError::Certificates { .. })));
        assert!(matches!(Settings::read(&|_| None), Err(HubError::NoHome)));
    }
}
