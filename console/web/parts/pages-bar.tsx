// The page states of a node: a bar whose parts sum to the pool, and the same as a table.

import type { JSX } from "preact";
import type { Pages } from "../api/types";
import { count, percent } from "../format";

export const STATES = [
  ["running", "of running sequences"],
  ["receiving", "a handoff writes them"],
  ["sending", "a handoff reads them"],
  ["cached", "held by the prefix cache alone"],
  ["quarantined", "of a broken handoff, until nothing can write them"],
  ["free", "empty"],
] as const satisfies readonly (readonly [keyof Pages, string])[];

export function PagesBar({ pages, of }: { pages: Pages; of: string }): JSX.Element {
  const used = pages.total - pages.free - pages.cached;
  return (
    <div class="pages">
      <div class="pages-head">
        <span>Pages</span>
        <span class="figures">
          {count(used)} in use of {count(pages.total)}
          {pages.promised > 0 && `, ${count(pages.promised)} promised`}
        </span>
      </div>
      <div class="pages-bar" aria-hidden="true">
        {STATES.map(([state]) =>
          pages[state] > 0 ? <i key={state} class={`page-${state}`} style={{ flexGrow: pages[state] }} /> : null,
        )}
      </div>
      <table class="pages-table">
        <caption class="unseen">Pages of {of} by state</caption>
        <tbody>
          {STATES.map(([state, meaning]) => (
            <tr key={state} title={`${percent(pages[state] / Math.max(1, pages.total))}: ${meaning}`} class={pages[state] === 0 ? "none" : ""}>
              <th scope="row">
                <i class={`page-${state}`} aria-hidden="true" />
                {state}
              </th>
              <td>{count(pages[state])}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
