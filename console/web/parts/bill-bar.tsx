// Where the time of an answer went.

import type { JSX } from "preact";
import type { Usage } from "../api/chat";
import { bytes, ms, things } from "../format";
import { type Part, timeline } from "../state/bill";

export function BillBar({ usage, first_ms, total_ms }: { usage: Usage; first_ms: number | null; total_ms: number }): JSX.Element {
  const bill = usage.baton_bill;
  const cached = usage.prompt_tokens_details.cached_tokens;
  const seconds = total_ms / 1000;
  return (
    <div class="bill">
      {bill && <Timeline {...timeline(bill)} />}
      <p class="note">
        {things(usage.prompt_tokens, "prompt token")}
        {cached > 0 && ` (${cached} cached)`}, {things(usage.completion_tokens, "token")} in {ms(total_ms)}
        {seconds > 0 && `, ${(usage.completion_tokens / seconds).toFixed(0)} a second`}; first after {ms(first_ms)}.{" "}
        {bill && (bill.prefill_node === null
          ? "The decode node ran the prompt itself."
          : `${bill.prefill_node} ran the prompt and handed over ${bytes(bill.transfer_bytes)} of KV in ${ms(bill.transfer_ms)}.`)}
        {bill && bill.repaired_frames > 0 && ` ${things(bill.repaired_frames, "frame")} had to be sent again.`}
      </p>
    </div>
  );
}

function Timeline({ total_ms, parts, transfer }: ReturnType<typeof timeline>): JSX.Element {
  const whole = Math.max(total_ms, 1e-6);
  const said = parts.map((part) => `${part.name} ${ms(part.took_ms)}`).join(", ");
  const place = (part: Part): Record<string, string> => ({
    left: `${(100 * part.from_ms) / whole}%`,
    width: `${(100 * part.took_ms) / whole}%`,
  });
  return (
    <>
      <div class="timeline" role="img" aria-label={`Timeline: ${said}`}>
        {parts.map((part) => (
          <i key={part.name} class={`bill-${part.name}`} style={place(part)} title={`${part.name}: ${ms(part.took_ms)}, ${part.meaning}`} />
        ))}
        {transfer && <i class="bill-transfer" style={place(transfer)} title={`transfer: ${ms(transfer.took_ms)}, ${transfer.meaning}`} />}
      </div>
      <dl class="bill-parts">
        {[...parts.slice(0, 2), ...(transfer ? [transfer] : []), ...parts.slice(2)].map((part) => (
          <div key={part.name} title={part.meaning}>
            <dt>
              <i class={`bill-${part.name}`} aria-hidden="true" />
              {part.name}
            </dt>
            <dd>{ms(part.took_ms)}</dd>
          </div>
        ))}
      </dl>
    </>
  );
}
