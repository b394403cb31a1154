//! How much each test runs: CI's share by default, an issue's whole numbers
//! with `BATON_COUNTS=full`. One table for all tests.

/// Numbers of one kind of run.
pub struct Counts {
    /// Random requests compared between split and local clusters.
    pub parity_requests: usize,
    /// The same for each other form of weights and arithmetic.
    pub parity_requests_of_forms: usize,
    /// Golden cases sent through a cluster of two processes.
    pub golden_split_cases: usize,
    /// Of the golden cases' 48 steps, each so-manieth is compared through the API.
    pub golden_forced_stride: usize,
    /// Random JSON Schemas that answers are held to.
    pub schemas: usize,
    /// Random regular expressions that answers are held to.
    pub regexes: usize,
    /// Times that a decode node dies, a few of these answers each time.
    pub structured_losses: usize,
    /// Seconds of 32 concurrent streams on the real model.
    pub load_seconds: u64,
    /// Rounds of each fault on the process cluster.
    pub chaos_rounds: usize,
    /// Seconds of a storm of faults.
    pub storm_seconds: u64,
    /// Seconds of a cluster that is looked at for what grows.
    pub soak_seconds: u64,
    /// Requests in flight while etcd is away.
    pub requests_without_etcd: usize,
    /// Seconds that etcd is away.
    pub etcd_away_seconds: u64,
    /// Clients that disconnect at a random token.
    pub disconnects: usize,
    /// Seconds until every page of clients that left is back: the promise is
    /// 2, which a busy CI machine need not keep.
    pub clean_cancel_seconds: u64,
    /// Random calls made from the OpenAPI document, over all operations.
    pub openapi_calls: usize,
    /// Handoffs of the soak test, most of them given up, over each transport.
    #[allow(dead_code, reason = "the soak test of decode-node/ alone reads it")]
    pub soak_handoffs: usize,
    /// Seeds of the simulation.
    #[allow(dead_code, reason = "the test of simulation/ alone reads it")]
    pub simulation_seeds: u64,
}

const CI: Counts = Counts {
    parity_requests: 30,
    parity_requests_of_forms: 5,
    golden_split_cases: 8,
    golden_forced_stride: 6,
    schemas: 16,
    regexes: 8,
    structured_losses: 1,
    load_seconds: 10,
    chaos_rounds: 1,
    storm_seconds: 20,
    soak_seconds: 30,
    requests_without_etcd: 8,
    etcd_away_seconds: 6,
    disconnects: 20,
    clean_cancel_seconds: 10,
    openapi_calls: 300,
    soak_handoffs: 200,
    simulation_seeds: 1_000,
};

const FULL: Counts = Counts {
    parity_requests: 200,
    parity_requests_of_forms: 50,
    golden_split_cases: usize::MAX,
    golden_forced_stride: 1,
    schemas: 300,
    regexes: 100,
    structured_losses: usize::MAX,
    load_seconds: 60,
    chaos_rounds: 5,
    storm_seconds: 600,
    soak_seconds: 600,
    requests_without_etcd: 40,
    etcd_away_seconds: 20,
    disconnects: 200,
    clean_cancel_seconds: 2,
    openapi_calls: 2000,
    soak_handoffs: 10_000,
    simulation_seeds: 10_000,
};

/// The numbers of this run.
pub fn counts() -> &'static Counts {
    if std::env::var("BATON_COUNTS").is_ok_and(|value| value == "full") { &FULL } else { &CI }
}

/// A number of the environment's, in the place of one of these.
#[allow(dead_code, reason = "tests of whole clusters alone ask")]
pub fn env_number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}
