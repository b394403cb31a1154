//! Settings as a page: names, kinds and words from the types' sources, usual values from a
//! configuration that was loaded, and every row of it loaded in turn.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use baton::{args::Settings, config::ClusterConfig};
use regex::Regex;
use syn::{
    Attribute, Expr, ExprLit, Field, Fields, GenericArgument, Item, ItemEnum, ItemStruct, Lit, Meta,
    PathArguments, Type,
};

const HEAD: &str = "\
# Settings

What the file of `baton serve --config FILE` may hold; `--set KEY=VALUE` sets one of it, \
`--set coordinator.max_running=64` for example. Other names are refused. Complete files are in \
`cluster-configs/`, one for each topology. Written from the code by `scripts/references`.

Times end in `_ms` or `_seconds`. A setting without a usual value is left out by default, or needed where \
it says so.
";

const COLUMNS: &str = "| setting | kind | usually | what it says |\n|---|---|---|---|\n";

/// Of `[registry]`, whose other settings are etcd's.
const TAG: &str = "| `kind` | `memory`, `etcd` | `memory` | `memory`: All nodes are in this process. `etcd`: An etcd; the others are how to reach it. |\n";

/// With every section that may be left out, and no more than it needs.
const WHOLE: [&str; 5] = [
    "registry={kind=\"etcd\",endpoints=[\"http://127.0.0.1:2379\"]}",
    "tls={ca=\"ca.crt\",cert=\"node.crt\",key=\"node.key\"}",
    "frontend.tls={cert=\"api.crt\",key=\"api.key\"}",
    "transfer.faults={}",
    "coordinator.budgets.classes=[{}]",
];

/// Where types are, by the name of their crate.
type Room = String;

struct Writer {
    items: BTreeMap<(Room, String), Item>,
    /// Usual values, by the whole name of the setting.
    usual: BTreeMap<String, String>,
}

/// What stands behind a field's name.
enum Kind<'a> {
    Word(String),
    Choice(Vec<(String, String)>),
    Section { room: Room, item: &'a Item, is_list: bool },
}

pub fn page() -> String {
    let writer = Writer { items: sources(), usual: usual() };
    let (room, item) = writer.find("baton", "ClusterConfig");
    HEAD.to_owned() + &writer.section("", &room, item, false)
}

// === what the code says ===

/// Every struct and enum that is read from a file.
fn sources() -> BTreeMap<(Room, String), Item> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rooms = [
        "",
        "protocol",
        "engine",
        "kv-transfer",
        "trust",
        "traces",
        "registry",
        "coordinator",
        "frontend",
        "prefill-node",
        "decode-node",
    ];
    let mut items = BTreeMap::new();
    for room in rooms {
        let name = format!("baton_{}", room.replace('-', "_"));
        let name = name.trim_end_matches('_').to_owned();
        for path in rust_files(&root.join(room).join("src")) {
            let text = fs::read_to_string(&path).unwrap();
            if !text.contains("Deserialize") && !text.contains("enum ") {
                continue;
            }
            for item in syn::parse_file(&text).unwrap().items {
                let (Item::Struct(ItemStruct { ident, attrs, .. })
                | Item::Enum(ItemEnum { ident, attrs, .. })) = &item
                else {
                    continue;
                };
                let key = (name.clone(), ident.to_string());
                // What is read goes before what has the same name.
                if is_read(attrs) {
                    items.insert(key, item);
                } else if matches!(item, Item::Enum(_)) {
                    items.entry(key).or_insert(item);
                }
            }
        }
    }
    items
}

fn is_read(attributes: &[Attribute]) -> bool {
    let derives = attributes.iter().filter(|attribute| attribute.path().is_ident("derive"));
    let mut names = derives.filter_map(|derive| match &derive.meta {
        Meta::List(list) => Some(list.tokens.to_string()),
        _ => None,
    });
    names.any(|names| names.contains("Deserialize"))
}

fn rust_files(place: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|end| end == "rs")).collect()
}

fn load(sets: &[&str]) -> anyhow::Result<ClusterConfig> {
    let set = sets.iter().map(|set| (*set).to_owned()).collect();
    ClusterConfig::load(&Settings { config: None, model: None, set })
}

/// Usual values, out of what a loaded configuration says of itself.
fn usual() -> BTreeMap<String, String> {
    let nodes = "nodes=[{id=\"one\",roles=[\"decode\"]}]";
    let config = load(&[&WHOLE[..], &[nodes]].concat()).unwrap();
    let (mut values, mut place) = (BTreeMap::new(), Vec::new());
    for line in format!("{config:#?}").lines().map(str::trim) {
        let (name, value) = line.split_once(": ").unwrap_or(("", line));
        let whole =
            || place.iter().copied().chain([name]).filter(|part| !part.is_empty()).collect::<Vec<_>>();
        match value.trim_end_matches(',') {
            "}" | ")" | "]" => _ = place.pop(),
            "None" | "[]" => {}
            open if open.ends_with(['{', '(', '[']) => place.push(name),
            leaf => _ = values.insert(whole().join("."), leaf.to_owned()),
        }
    }
    values
}

/// The words above an item, in one line.
fn words(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(said) if said.path.is_ident("doc") => match &said.value {
            Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) => Some(line.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    });
    let said = lines.collect::<Vec<_>>().join(" ").replace('|', "\\|");
    // Links to other items lead nowhere from here.
    Regex::new(r"\[(`[^`]+`)\](\([^)]*\))?").unwrap().replace_all(&said, "$1").into_owned()
}

/// Whether `#[serde(...)]` says this word.
fn serde_says(attributes: &[Attribute], word: &str) -> bool {
    let mut says = false;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        let _ = attribute.parse_nested_meta(|meta| {
            says |= meta.path.is_ident(word);
            if meta.input.peek(syn::Token![=]) {
                let _: Expr = meta.value()?.parse()?;
            }
            Ok(())
        });
    }
    says
}

/// Values of an enum are its variants in small letters.
fn small(name: &str) -> String {
    let mut small = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !small.is_empty() {
            small.push('_');
        }
        small.extend(letter.to_lowercase());
    }
    small
}

// === impl Writer ===

impl Writer {
    /// A struct's settings as a table, then those below it.
    fn section(&self, place: &str, room: &str, item: &Item, is_list: bool) -> String {
        let (attributes, fields, tag) = match item {
            Item::Struct(found) => (&found.attrs, fields(&found.fields), ""),
            Item::Enum(found) => (&found.attrs, self.tagged(found), TAG),
            _ => unreachable!("only these are kept"),
        };
        let heading =
            if place.is_empty() { String::new() } else { format!("\n## {}\n", header(place, is_list)) };
        let mut text = format!("{heading}\n{COLUMNS}{tag}");
        let (mut below, mut named) = (String::new(), BTreeSet::new());
        for field in fields.iter().filter(|field| !serde_says(&field.attrs, "skip")) {
            let name = field.ident.as_ref().unwrap().to_string();
            let whole = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
            let said = words(&field.attrs);
            match self.kind(room, &field.ty) {
                Kind::Section { room, item, is_list } => {
                    below += &self.section(&whole, &room, item, is_list);
                    writeln!(text, "| `{name}` | section {} | | {said} |", header(&whole, is_list)).unwrap();
                }
                kind => {
                    let may_be_absent =
                        [attributes, &field.attrs].iter().any(|all| serde_says(all, "default"));
                    let row = self.row((&name, &whole), &kind, may_be_absent);
                    writeln!(text, "{row} {said}{} |", kind.values()).unwrap();
                }
            }
            named.insert(name);
        }
        known(place, is_list, &named);
        text + &below
    }

    /// A row up to its words; its usual value is one that is taken.
    fn row(&self, (name, whole): (&str, &str), kind: &Kind<'_>, may_be_absent: bool) -> String {
        let usual = match (self.usual.get(whole), kind) {
            _ if !may_be_absent => "needed".to_owned(),
            (None, _) => String::new(),
            (Some(value), Kind::Choice(_)) => format!("`{}`", small(value)),
            (Some(value), _) => format!("`{}`", value.trim_matches('"')),
        };
        let is_alone = !whole.starts_with("nodes.") && !whole.starts_with("coordinator.budgets.classes.");
        if may_be_absent && is_alone && !usual.is_empty() {
            taken(whole, usual.trim_matches('`'));
        }
        if let (Kind::Choice(values), true) = (kind, is_alone) {
            values.iter().for_each(|(value, _)| taken(whole, value));
        }
        format!("| `{name}` | {} | {usual} |", kind.word())
    }

    /// Settings of all variants of an enum with a tag.
    fn tagged(&self, found: &ItemEnum) -> Vec<Field> {
        let inner = found.variants.iter().flat_map(|variant| variant.fields.iter());
        let structs = inner.filter_map(|field| match self.kind("baton", &field.ty) {
            Kind::Section { item: Item::Struct(inner), .. } => Some(fields(&inner.fields)),
            _ => None,
        });
        structs.flatten().collect()
    }

    fn kind(&self, room: &str, of: &Type) -> Kind<'_> {
        let Type::Path(path) = of else { return Kind::Word("text".to_owned()) };
        let last = path.path.segments.last().unwrap();
        let inner = match &last.arguments {
            PathArguments::AngleBracketed(inner) => inner.args.iter().find_map(|one| match one {
                GenericArgument::Type(inner) => Some(inner),
                _ => None,
            }),
            _ => None,
        };
        let name = last.ident.to_string();
        match (name.as_str(), inner) {
            ("Option", Some(inner)) => return self.kind(room, inner),
            ("Vec", Some(inner)) => {
                return match self.kind(room, inner) {
                    Kind::Section { room, item, .. } => Kind::Section { room, item, is_list: true },
                    kind => Kind::Word(format!("list of {}", kind.word())),
                };
            }
            ("bool", _) => return Kind::Word("`true` or `false`".to_owned()),
            ("f64" | "f32", _) => return Kind::Word("number".to_owned()),
            ("usize" | "u8" | "u32" | "u64" | "i32", _) => return Kind::Word("whole number".to_owned()),
            ("PathBuf", _) => return Kind::Word("path".to_owned()),
            ("SocketAddr", _) => return Kind::Word("address".to_owned()),
            ("String" | "NodeId", _) => return Kind::Word("text".to_owned()),
            _ => {}
        }
        let first = path.path.segments.first().unwrap().ident.to_string();
        let room = if first.starts_with("baton_") { first } else { room.to_owned() };
        let (room, item) = self.find(&room, &name);
        match item {
            Item::Enum(found) if !serde_says(&found.attrs, "tag") => Kind::Choice(self.choice(&room, found)),
            item => Kind::Section { room, item, is_list: false },
        }
    }

    /// A type of this room, or of the one that it was imported from, which may be everybody's.
    fn find(&self, room: &str, name: &str) -> (Room, &Item) {
        for room in [room, "baton_protocol"] {
            if let Some(item) = self.items.get(&(room.to_owned(), name.to_owned())) {
                return (room.to_owned(), item);
            }
        }
        // Nothing imports from the program itself.
        let mut others = self.items.iter().filter(|((room, other), _)| other == name && room != "baton");
        let found = others.next().unwrap_or_else(|| panic!("{name} of {room} is nowhere"));
        assert!(others.next().is_none(), "{name} of {room} is in several rooms");
        (found.0.0.clone(), found.1)
    }

    /// The words of an enum, and what each means.
    fn choice(&self, room: &str, found: &ItemEnum) -> Vec<(String, String)> {
        let values = found.variants.iter().flat_map(|variant| {
            match variant.fields.iter().next().map(|inner| self.kind(room, &inner.ty)) {
                Some(Kind::Choice(values)) => values,
                _ => vec![(small(&variant.ident.to_string()), words(&variant.attrs))],
            }
        });
        values.collect()
    }
}

fn header(place: &str, is_list: bool) -> String {
    if is_list { format!("`[[{place}]]`") } else { format!("`[{place}]`") }
}

fn fields(fields: &Fields) -> Vec<Field> {
    fields.iter().cloned().collect()
}

// === impl Kind ===

impl Kind<'_> {
    fn word(&self) -> String {
        match self {
            Self::Word(word) => word.clone(),
            Self::Choice(values) => {
                values.iter().map(|(value, _)| format!("`{value}`")).collect::<Vec<_>>().join(", ")
            }
            Self::Section { .. } => "section".to_owned(),
        }
    }

    /// What each value means.
    fn values(&self) -> String {
        let Self::Choice(values) = self else { return String::new() };
        values.iter().map(|(value, said)| format!(" `{value}`: {said}")).collect()
    }
}

// === holding it to the loader ===

/// Whether a value is read at all; whether it may be beside others is checked later.
fn taken(whole: &str, value: &str) {
    if let Err(error) = load(&[WHOLE[0], &format!("{whole}={value}")]) {
        assert!(!error.to_string().starts_with("in defaults"), "{whole}={value}: {error:#}");
    }
}

/// That a section has these names and no others, as the loader tells who asks for another.
fn known(place: &str, is_list: bool, named: &BTreeSet<String>) {
    let nothing = match (place, is_list) {
        ("", _) => "nothing=1".to_owned(),
        ("registry", _) => "registry={kind=\"etcd\",nothing=1}".to_owned(),
        (place, true) => format!("{place}=[{{nothing=1}}]"),
        (place, false) => format!("{place}={{nothing=1}}"),
    };
    let said = format!("{:#}", load(&[&nothing]).unwrap_err());
    let expected = said.split("expected").nth(1).and_then(|rest| rest.lines().next());
    let expected = expected.unwrap_or_else(|| panic!("{place}: {said}"));
    let told: BTreeSet<_> = expected.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    assert_eq!(&told, named, "{place}: {said}");
}
