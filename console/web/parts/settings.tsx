// What is asked with every message.

import type { JSX } from "preact";
import { apiKey, learn, maxTokens, model, problem, served, system, temperature, useApiKey, wantsKey } from "../state/talk";

export function Settings(): JSX.Element {
  return (
    <aside class="settings card" aria-label="Settings">
      <label>
        Model
        <select value={model.value} onChange={(event) => (model.value = event.currentTarget.value)}>
          {served.value.map((name) => (
            <option key={name}>{name}</option>
          ))}
        </select>
      </label>
      {problem.value !== null && (
        <p class="problem" role="alert">
          {wantsKey.value ? "The API asks its users for a key, which is none of the operators'." : `Models cannot be listed: ${problem.value}`}
        </p>
      )}
      {(wantsKey.value || apiKey.value !== "") && (
        <label>
          API key, kept in this tab
          <input
            type="password"
            autoComplete="off"
            value={apiKey.value}
            onChange={(event) => {
              useApiKey(event.currentTarget.value.trim());
              void learn();
            }}
          />
        </label>
      )}
      <label>
        System message
        <textarea rows={3} value={system.value} onInput={(event) => (system.value = event.currentTarget.value)} />
      </label>
      <label>
        Most tokens
        <input
          type="number"
          min={1}
          max={32768}
          value={maxTokens.value}
          onChange={(event) => (maxTokens.value = Math.max(1, Math.trunc(event.currentTarget.valueAsNumber) || 1))}
        />
      </label>
      <label>
        <span class="with-value">
          Temperature <output>{temperature.value.toFixed(1)}</output>
        </span>
        <input type="range" min={0} max={2} step={0.1} value={temperature.value} onInput={(event) => (temperature.value = event.currentTarget.valueAsNumber)} />
      </label>
    </aside>
  );
}
