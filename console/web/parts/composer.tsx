// Where a message is written.

import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { halt, isBusy, say } from "../state/talk";
import { Icon } from "./icon";

export function Composer(): JSX.Element {
  const text = useSignal("");
  const busy = isBusy();
  const isReady = text.value.trim() !== "" && !busy;
  const send = (): void => {
    if (!isReady) return;
    void say(text.value.trim());
    text.value = "";
  };
  return (
    <form
      class="composer card"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <textarea
        rows={3}
        aria-label="Your message"
        placeholder="Your message; Enter sends, Shift and Enter begins a line"
        value={text.value}
        onInput={(event) => (text.value = event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
          event.preventDefault();
          send();
        }}
      />
      {busy ? (
        <button type="button" class="button" onClick={halt}>
          <Icon name="stop" /> Stop
        </button>
      ) : (
        <button type="submit" class="button main" disabled={!isReady}>
          <Icon name="send" /> Send
        </button>
      )}
    </form>
  );
}
