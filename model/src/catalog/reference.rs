//! The name of a model on the Hugging Face Hub.

use std::path::{Component, Path};

use super::known;

/// What is used when no revision is named.
const MAIN: &str = "main";
const GGUF: &str = ".gguf";

/// `org/name`, `org/name@revision`, `org/name:Q4_K_M` or `org/name/file.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `org/name`.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// Which of the repository's models.
    pub pick: Pick,
}

/// Which of a repository's models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The checkpoint in safetensors, or else the only GGUF file.
    Only,
    /// The one GGUF file of this quantisation.
    Quantisation(String),
    /// This GGUF file.
    File(String),
}

/// Whether a name from elsewhere stays inside the directory that it is joined to.
pub fn is_inside(name: &str) -> bool {
    let mut components = Path::new(name).components();
    !name.is_empty()
        && !name.contains(['\\', '\0'])
        && components.all(|component| matches!(component, Component::Normal(_)))
}

/// Whether `text` is a commit's hash.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_repository_part(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=96).contains(&part.len())
        && part.bytes().all(plain)
        && !part.starts_with(['.', '-'])
        && !part.ends_with(['.', '-'])
        && !part.contains("..")
        && !part.contains("--")
}

// === impl Reference ===

impl Reference {
    /// Reads a name; none if it cannot be one of the Hub's.
    pub fn parse(name: &str) -> Option<Self> {
        if let Some(repository) = known::repository(name) {
            return Self::parse(repository);
        }
        let (name, quantisation) = match name.rsplit_once(':') {
            Some((name, quantisation)) => (name, Some(quantisation)),
            None => (name, None),
        };
        let (name, revision) = name.split_once('@').unwrap_or((name, MAIN));
        let mut parts = name.splitn(3, '/');
        let (organisation, model, file) = (parts.next()?, parts.next()?, parts.next());
        let pick = match (file, quantisation) {
            (None, None) => Pick::Only,
            (None, Some(quantisation)) if !quantisation.is_empty() => {
                Pick::Quantisation(quantisation.to_owned())
            }
            (Some(file), None) if file.ends_with(GGUF) && is_inside(file) => Pick::File(file.to_owned()),
            _ => return None,
        };
        // A file that is not there is more likely meant than a repository with such a name.
        let names_a_repository =
            is_repository_part(organisation) && is_repository_part(model) && !model.ends_with(GGUF);
        let repository = format!("{organisation}/{model}");
        (names_a_repository && is_inside(revision)).then(|| Self {
            repository,
            revision: revision.to_owned(),
            pick,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> Option<(String, String, Pick)> {
        Reference::parse(name).map(|it| (it.repository, it.revision, it.pick))
    }

    #[test]
    fn names_are_read() {
        let hub =
            |repository: &str, revision: &str, pick| Some((repository.to_owned(), revision.to_owned(), pick));
        let quantisation = || Pick::Quantisation("Q4_K_M".to_owned());
        for (name, meant) in [
            ("org/name", hub("org/name", "main", Pick::Only)),
            ("org/name@v1.0", hub("org/name", "v1.0", Pick::Only)),
            ("org/name@refs/pr/1", hub("org/name", "refs/pr/1", Pick::Only)),
            ("org/name:Q4_K_M", hub("org/name", "main", quantisation())),
            ("org/name@v1:Q4_K_M", hub("org/name", "v1", quantisation())),
            ("org/name/a.gguf", hub("org/name", "main", Pick::File("a.gguf".to_owned()))),
            ("org/name/b/a.gguf@v1", hub("org/name", "v1", Pick::File("b/a.gguf".to_owned()))),
            ("llama3.2-1b", hub("meta-llama/Llama-3.2-1B-Instruct", "main", Pick::Only)),
            ("Org-1/some.name_2.5-GGUF", hub("Org-1/some.name_2.5-GGUF", "main", Pick::Only)),
        ] {
            assert_eq!(parsed(name), meant, "{name}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in [
            "",
            "name",
            "/name",
            "org/",
            "org/name/",
            "org/name/file.bin",
            "org/name/../x.gguf",
            "../org/name",
            "./name",
            "~/name",
            "org/name@",
            "org/name@../x",
            "org/name@/x",
            "org/name:",
            "models/x.gguf",
            "org/na me",
            "org/a--b",
            "org/name/x.gguf:Q4_0",
            "org/..",
            "org/name//x.gguf/../y.gguf",
        ] {
            assert_eq!(parsed(name), None, "{name}");
        }
    }

    #[test]
    fn every_short_name_is_a_name() {
        let short: Vec<_> = known::names().filter(|name| known::packaged(name).is_none()).collect();
        assert!(short.len() > 20);
        for name in short {
            assert!(Reference::parse(name).is_some_and(|it| it.pick == Pick::Only), "{name}");
        }
    }
}
