// Asks for an operator's key, where the coordinator wants one.

import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { useKey } from "../api/client";
import { begin } from "../state/scene";

export function Gate({ wrong }: { wrong: boolean }): JSX.Element {
  const key = useSignal("");
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.focus(), []);
  return (
    <main class="gate" id="page">
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault();
          useKey(key.value.trim());
          begin();
        }}
      >
        <h1>Operators only</h1>
        <p id="gate-words">This coordinator asks operators for a key. It is kept in this tab, and sent to this coordinator alone.</p>
        <label>
          Key
          <input
            ref={field}
            type="password"
            autoComplete="off"
            spellcheck={false}
            aria-describedby="gate-words"
            value={key.value}
            onInput={(event) => (key.value = event.currentTarget.value)}
          />
        </label>
        {wrong && (
          <p class="problem" role="alert">
            The key was refused.
          </p>
        )}
        <button type="submit" class="button main" disabled={key.value.trim() === ""}>
          Come in
        </button>
        <p class="note">
          New keys are made by <code>baton key new --tenant NAME --file KEYS</code>, with the file of <code>admin.keys_file</code>.
        </p>
      </form>
    </main>
  );
}
