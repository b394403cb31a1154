import type { JSX } from "preact";
import { compact, count, ms, percent } from "../format";
import { Chart } from "../parts/chart";
import { attained, WINDOW_MS } from "../state/history";
import { history, limits } from "../state/scene";

const WINDOW = `Each moment shows the ${WINDOW_MS / 1000} seconds before it.`;

export function TimePage(): JSX.Element {
  const samples = history.value;
  const budget = limits.value;
  const kept = (of: "ttft" | "itl", limit: number | undefined): string => {
    const share = limit === undefined ? null : attained(samples, of, limit);
    return share === null ? WINDOW : `${percent(share)} within the budget since this page was opened. ${WINDOW}`;
  };
  return (
    <>
      <h1>Time</h1>
      <p class="lead">
        What readers of this coordinator wait for, against what they should wait at most. Measured while this page is open; Prometheus has the
        same at <code>/metrics</code> of the API.
      </p>
      <div class="charts">
        <Chart
          title="Time to first token"
          note={kept("ttft", budget?.ttft_ms)}
          samples={samples}
          budget={budget?.ttft_ms}
          say={ms}
          series={[
            { name: "p50", tone: "tone-a", of: (sample) => sample.ttft.p50 },
            { name: "p95", tone: "tone-b", of: (sample) => sample.ttft.p95 },
          ]}
        />
        <Chart
          title="Between tokens"
          note={kept("itl", budget?.itl_ms)}
          samples={samples}
          budget={budget?.itl_ms}
          say={ms}
          series={[
            { name: "p50", tone: "tone-a", of: (sample) => sample.itl.p50 },
            { name: "p95", tone: "tone-b", of: (sample) => sample.itl.p95 },
          ]}
        />
        <Chart
          title="Requests"
          samples={samples}
          say={(value) => (value < 10 && value % 1 ? value.toFixed(1) : count(value))}
          series={[
            { name: "running", tone: "tone-c", of: (sample) => sample.running },
            { name: "waiting", tone: "tone-d", of: (sample) => sample.waiting },
          ]}
        />
        <Chart title="Tokens a second" samples={samples} say={compact} series={[{ name: "tokens", tone: "tone-c", of: (sample) => sample.tokens }]} />
      </div>
    </>
  );
}
