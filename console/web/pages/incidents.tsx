import type { JSX } from "preact";
import type { Act, Incident } from "../api/types";
import { age, clock, things } from "../format";
import { Empty } from "../parts/empty";
import { acts, incidents } from "../state/scene";

/** Kinds after which somebody may have to do something, and those that say that all is well again. */
const BAD = ["node_lost", "node_left", "attempt_lost", "quarantined", "registry_away", "node_slow"];
const GOOD = ["node_ready", "registry_back"];

const DID: Record<string, string> = {
  drain: "drained",
  undrain: "undrained",
  roles: "changed the roles of",
  cancel: "cancelled request",
  limits: "changed the limits",
  flush: "flushed all prefix caches",
};

export function IncidentsPage(): JSX.Element {
  return (
    <>
      <h1>Incidents</h1>
      <div class="two">
        <section aria-labelledby="happened">
          <h2 id="happened" class="pool-title">
            What has happened
          </h2>
          {incidents.value.length === 0 ? (
            <Empty title="Nothing has happened">Since this coordinator began, no node came, went or failed.</Empty>
          ) : (
            <ol class="card log">
              {incidents.value.map((incident) => (
                <Happened key={`${incident.first_ms} ${incident.node} ${incident.kind}`} incident={incident} />
              ))}
            </ol>
          )}
        </section>
        <section aria-labelledby="done">
          <h2 id="done" class="pool-title">
            Who did what
          </h2>
          {acts.value.length === 0 ? (
            <Empty title="No operator has done anything">Drains, roles, cancelled requests, limits and flushes are kept here with who did them.</Empty>
          ) : (
            <ol class="card log audit">
              {acts.value.map((act) => (
                <Done key={`${act.at_ms} ${act.what} ${act.whom}`} act={act} />
              ))}
            </ol>
          )}
        </section>
      </div>
    </>
  );
}

function When({ at }: { at: number }): JSX.Element {
  return (
    <time dateTime={new Date(at).toISOString()} title={clock(at)}>
      {age(Date.now() - at)} ago
    </time>
  );
}

function Happened({ incident }: { incident: Incident }): JSX.Element {
  const { kind, node, words, last_ms, times } = incident;
  const tone = BAD.includes(kind) ? "lost" : GOOD.includes(kind) ? "ready" : "draining";
  return (
    <li>
      <span class={`health ${tone}`} aria-hidden="true" />
      <span class="log-words">
        {node !== null && <b>{node}</b>} {words}
        {times > 1 && <span class="note"> {things(times, "time")}</span>}
      </span>
      <When at={last_ms} />
    </li>
  );
}

function Done({ act }: { act: Act }): JSX.Element {
  const whom = act.what === "cancel" ? act.whom?.slice(0, 8) : act.whom;
  return (
    <li>
      <span class={`health ${act.refused === null ? "ready" : "lost"}`} aria-hidden="true" />
      <span class="log-words">
        <b>{act.who}</b> {act.refused === null ? "" : "was refused: "}
        {DID[act.what] ?? act.what} {whom && <b>{whom}</b>}
        {act.how !== null && ` (${act.how})`}
        {act.refused !== null && <span class="problem"> {act.refused}</span>}
      </span>
      <When at={act.at_ms} />
    </li>
  );
}
