# The door for people; `scripts/` does the work, so that nothing but Rust and
# Debian is needed without `just`.

# Runs the demo: two prefill nodes, one decode node, real answers.
demo *ARGS:
    scripts/demo {{ARGS}}

# Everything CI runs.
test:
    scripts/test

# The console in a browser; `--screenshots` takes docs/console anew.
test-console *ARGS:
    scripts/test-console {{ARGS}}

# Ops on this machine's NVIDIA card: tests, `bench`, or `sanitize`.
test-gpu *ARGS:
    scripts/test-gpu {{ARGS}}

# Alerts, dashboard and reference of metrics against a real Prometheus; `--write` makes docs/metrics.md anew.
test-metrics *ARGS:
    scripts/test-metrics {{ARGS}}

# The Debian package, units, completions and man pages; `--full` installs it into a fresh Debian.
test-packages *ARGS:
    scripts/test-packages {{ARGS}}

# One program for old systems, packed with its man pages and completions.
package-binary *ARGS:
    scripts/package-binary {{ARGS}}

# The documentation as a site, target/site/html, by mdBook.
site:
    scripts/site

# The pages of docs/ anew that come from the code: settings, APIs, the protocol.
references:
    scripts/references

# README's commands in a clean Debian, from a clone to an open console, each step timed.
newcomer *ARGS:
    scripts/newcomer {{ARGS}}

# The container image, compose.yaml and the pods of the chart, by podman, on a base made from Debian's packages.
test-images:
    scripts/test-images

# The Helm chart; `--write` makes its golden files anew.
test-chart *ARGS:
    scripts/test-chart {{ARGS}}

# The issue's whole numbers, which take longer than CI may.
full:
    BATON_COUNTS=full scripts/test

# Every fault in every phase of a request; writes CHAOS.md. With `--minutes N`, a storm of them, by `--seed S`.
chaos *ARGS:
    scripts/chaos {{ARGS}}

# A cluster under a little of everything for so many minutes: nothing may grow.
soak MINUTES="60":
    scripts/soak {{MINUTES}}

# The control plane in one process under faults: so many seeds, from one on.
sim SEEDS="1000" FROM="0":
    scripts/sim {{SEEDS}} {{FROM}}

# One of them, with all that was logged.
sim-seed SEED:
    scripts/sim seed {{SEED}}

# All that two NVIDIA cards of one host are asked for, in one table; builds nothing.
two-cards:
    scripts/two-cards

# Fuzzes a target of fuzz/ until it is stopped, or all of them for so many seconds each (`all 60`).
fuzz TARGET *ARGS:
    scripts/fuzz {{TARGET}} {{ARGS}}

# What the program is made of, as CycloneDX: target/sbom/baton.cdx.json.
sbom:
    scripts/sbom

# Cargo.lock beside RustSec's advisories; `--db FOLDER` takes a copy of theirs instead of fetching it.
audit *ARGS:
    scripts/audit {{ARGS}}

# Builds in two folders, and compares: all, or the crates that are named.
reproducible *CRATES:
    scripts/test-reproducible {{CRATES}}

fmt:
    cargo fmt --all

# Lints that need tools beside Rust: cargo-deny and cargo-machete.
lint:
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets --features cuda,ucx -- -D warnings
    cargo deny check bans licenses sources
    cargo machete

# Figures for BENCHMARKS.md.
bench *ARGS:
    cargo run --release -q -- bench {{ARGS}}

# Fails when a ratio of BENCHMARKS.md is missed on this machine.
bench-check:
    cargo run --release -q -- bench check

# The hot paths by criterion, beside benches/baseline.json; `--write` makes it anew.
bench-compare *ARGS:
    scripts/bench-compare {{ARGS}}

# Two prefill nodes, two decode nodes and a coordinator as processes, over a real etcd.
cluster *ARGS:
    scripts/cluster {{ARGS}}
