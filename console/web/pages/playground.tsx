import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { BillBar } from "../parts/bill-bar";
import { Composer } from "../parts/composer";
import { Empty } from "../parts/empty";
import { Settings } from "../parts/settings";
import { forget, isBusy, learn, type Turn, turns } from "../state/talk";

export function PlaygroundPage(): JSX.Element {
  useEffect(() => void learn(), []);
  return (
    <>
      <header class="page-head">
        <h1>Playground</h1>
        {turns.value.length > 0 && (
          <button type="button" class="button quiet" onClick={forget}>
            New conversation
          </button>
        )}
      </header>
      <div class="play">
        <div class="talk">
          <Transcript />
          <Composer />
        </div>
        <Settings />
      </div>
    </>
  );
}

function Transcript(): JSX.Element {
  const end = useRef<HTMLDivElement>(null);
  const length = turns.value.at(-1)?.answer.length;
  useEffect(() => end.current?.scrollIntoView({ block: "nearest" }), [turns.value.length, length, turns.value.at(-1)?.usage]);
  if (turns.value.length === 0) {
    return <Empty title="Ask something">The answer streams from the cluster, and under it stands where its time went.</Empty>;
  }
  return (
    <ol class="turns" aria-label="Conversation">
      {turns.value.map((turn, at) => (
        <TurnView key={at} turn={turn} isLast={at === turns.value.length - 1} />
      ))}
      <div ref={end} />
    </ol>
  );
}

function problemWords({ problem, answer }: Turn): string {
  if (problem === "stopped") return "Stopped.";
  return answer === "" ? `No answer: ${problem}` : `Broken off: ${problem}`;
}

function TurnView({ turn, isLast }: { turn: Turn; isLast: boolean }): JSX.Element {
  const streams = isLast && isBusy();
  return (
    <li class="turn">
      <p class="question">{turn.question}</p>
      <div class="answer" aria-live={isLast ? "polite" : undefined} aria-busy={streams}>
        <p class={streams ? "streaming" : ""}>{turn.answer}</p>
        {turn.problem !== null && <p class="problem">{problemWords(turn)}</p>}
        {turn.usage && turn.total_ms !== null && <BillBar usage={turn.usage} first_ms={turn.first_ms} total_ms={turn.total_ms} />}
      </div>
    </li>
  );
}
