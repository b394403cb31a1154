import type { JSX } from "preact";
import type { Queue, Request } from "../api/types";
import { age, count, ms, things } from "../format";
import { ask } from "../parts/dialog";
import { Empty } from "../parts/empty";
import { limits, queues, requests } from "../state/scene";
import { cancel } from "../state/steering";

/** More would not be read, and cost the page its ease. */
const SHOWN = 200;

export function RequestsPage(): JSX.Element {
  const all = requests.value;
  return (
    <>
      <h1>Requests</h1>
      <Lines />
      {all.length === 0 ? (
        <Empty title="No requests in flight">Those that come to this coordinator are listed here from their arrival to their last token.</Empty>
      ) : (
        <div class="card scroll" role="region" aria-label="Requests in flight" tabIndex={0}>
          <table class="requests">
            <caption class="unseen">Requests in flight, the oldest first</caption>
            <thead>
              <tr>
                <th scope="col">Request</th>
                <th scope="col">Stage</th>
                <th scope="col">Tenant</th>
                <th scope="col">Model</th>
                <th scope="col">Prefill → decode</th>
                <th scope="col" class="number">Prompt</th>
                <th scope="col" class="number">Tokens</th>
                <th scope="col" class="number">Age</th>
                <th scope="col" class="number">Left</th>
                <th scope="col">
                  <span class="unseen">What can be done</span>
                </th>
              </tr>
            </thead>
            <tbody>
              {all.slice(0, SHOWN).map((request) => (
                <Row key={request.id} request={request} />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {all.length > SHOWN && <p class="note">{things(all.length - SHOWN, "younger request")} more.</p>}
    </>
  );
}

function Row({ request }: { request: Request }): JSX.Element {
  const { id, stage, tenant, model, prefill, decode } = request;
  return (
    <tr>
      <th scope="row" data-label="Request">
        <code title={`${id}, attempt ${request.attempts}`}>{id.slice(0, 8)}</code>
      </th>
      <td data-label="Stage">
        <span class={`chip stage-${stage}`}>{stage}</span>
      </td>
      <td data-label="Tenant">{tenant}</td>
      <td data-label="Model">{model}</td>
      <td data-label="Nodes">{decode === null ? "–" : `${prefill ?? "itself"} → ${decode}`}</td>
      <td data-label="Prompt" class="number">
        {count(request.prompt_tokens)}
      </td>
      <td data-label="Tokens" class="number">
        {count(request.tokens)}
      </td>
      <td data-label="Age" class="number">
        {ms(request.age_ms)}
      </td>
      <td data-label="Left" class="number">
        {age(request.left_ms)}
      </td>
      <td class="number">
        <button type="button" class="button quiet grave" aria-label={`Cancel request ${id.slice(0, 8)}`} onClick={() => ask(cancel(request))}>
          Cancel
        </button>
      </td>
    </tr>
  );
}

/** Who runs and who waits, by model. */
function Lines(): JSX.Element | null {
  const most = limits.value;
  if (queues.value.length === 0) return null;
  return (
    <ul class="lines">
      {queues.value.map((queue) => (
        <li key={queue.model} class="card">
          <b>{queue.model}</b>
          <span>
            {count(queue.running)} running{most && ` of ${count(most.max_running)}`}
          </span>
          <span>
            {count(queue.waiting)} waiting{most && ` of ${count(most.max_waiting)}`}
          </span>
          {queue.interval_ms !== null && <span>a place comes free each {ms(queue.interval_ms)}</span>}
          {tenants(queue) !== "" && <span class="note">{tenants(queue)}</span>}
        </li>
      ))}
    </ul>
  );
}

function tenants(queue: Queue): string {
  return Object.entries(queue.waiting_by_tenant)
    .map(([tenant, waiting]) => `${tenant}: ${count(waiting)}`)
    .join(", ");
}
