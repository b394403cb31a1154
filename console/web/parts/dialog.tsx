// The one dialog: says what a deed will do, does it, and says what came of it.

import { signal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { refresh } from "../state/scene";
import type { Deed } from "../state/steering";
import { tell } from "./notice";

const asked = signal<Deed | null>(null);
const insisted = signal(false);
const busy = signal(false);
const refused = signal<string | null>(null);

/** Asks whether a deed is meant. */
export function ask(deed: Deed): void {
  insisted.value = false;
  refused.value = null;
  asked.value = deed;
}

async function confirm(deed: Deed): Promise<void> {
  busy.value = true;
  try {
    tell(await deed.act(insisted.value));
    asked.value = null;
  } catch (error) {
    refused.value = error instanceof Error ? error.message : String(error);
  } finally {
    busy.value = false;
    refresh();
  }
}

export function Dialog(): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null);
  const deed = asked.value;
  useEffect(() => {
    if (deed && !dialog.current?.open) dialog.current?.showModal();
    if (!deed) dialog.current?.close();
  }, [deed]);
  return (
    <dialog ref={dialog} class="dialog" aria-labelledby="dialog-title" onClose={() => (asked.value = null)}>
      {deed && (
        <form
          method="dialog"
          onSubmit={(event) => {
            event.preventDefault();
            void confirm(deed);
          }}
        >
          <h2 id="dialog-title">{deed.title}</h2>
          <ul class="dialog-words">
            {deed.words.map((sentence) => (
              <li key={sentence}>{sentence}</li>
            ))}
          </ul>
          {deed.insist !== null && <Insist why={deed.insist} />}
          {refused.value !== null && (
            <p class="problem" role="alert">
              Not done: {refused.value}
            </p>
          )}
          <div class="dialog-buttons">
            <button type="button" class="button" onClick={() => dialog.current?.close()}>
              Keep as it is
            </button>
            <button
              type="submit"
              class={deed.grave ? "button grave" : "button main"}
              disabled={busy.value || (deed.insist !== null && !insisted.value)}
            >
              {busy.value ? "Working…" : deed.verb}
            </button>
          </div>
        </form>
      )}
    </dialog>
  );
}

function Insist({ why }: { why: string }): JSX.Element {
  return (
    <label class="insist">
      <input
        type="checkbox"
        checked={insisted.value}
        onChange={(event) => (insisted.value = event.currentTarget.checked)}
      />
      <span>
        {why} <b>Do it all the same.</b>
      </span>
    </label>
  );
}
