// What is around every page: where one can go, how the coordinator is, light or dark.

import type { ComponentChildren, JSX } from "preact";
import { operatorKey } from "../api/client";
import { age, things } from "../format";
import { PAGES, place } from "../state/place";
import { cluster, contact, lock, nodes, refresh, requests } from "../state/scene";
import { THEMES, theme } from "../state/theme";
import { Icon } from "./icon";

export function Shell({ children }: { children: ComponentChildren }): JSX.Element {
  return (
    <div class={contact.value.state === "away" ? "shell stale" : "shell"}>
      <a class="skip" href="#page" onClick={focusPage}>
        Skip to the page
      </a>
      <nav class="side" aria-label="Pages">
        <p class="brand">
          <Mark />
          Baton
        </p>
        <ul>
          {PAGES.map(({ path, title }) => (
            <li key={path}>
              <a href={`#/${path}`} aria-current={place.value === path ? "page" : undefined}>
                <Icon name={path} />
                <span>{title}</span>
                {path === "requests" && requests.value.length > 0 && <b class="badge">{requests.value.length}</b>}
              </a>
            </li>
          ))}
        </ul>
        <div class="side-foot">
          <State />
          <div class="side-buttons">
            <ThemeButton />
            {operatorKey.value !== "" && (
              <button type="button" class="button quiet" title="Forget the key" onClick={lock}>
                <Icon name="lock" />
                <span>Lock</span>
              </button>
            )}
          </div>
        </div>
      </nav>
      <main id="page" tabIndex={-1}>
        <Away />
        {children}
      </main>
    </div>
  );
}

/** The address is the router's, so that its fragment cannot name the page's element. */
function focusPage(event: Event): void {
  event.preventDefault();
  document.getElementById("page")?.focus();
}

function Mark(): JSX.Element {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
      <rect x="1" y="1" width="30" height="30" rx="8" />
      <path d="M9 22 23 10" />
      <circle cx="23" cy="10" r="2.6" />
    </svg>
  );
}

function State(): JSX.Element {
  const now = contact.value;
  const seen = now.state === "seen" ? cluster.value : null;
  const [tone, words] = !seen ? (["away", "no contact"] as const) : seen.ready ? (["ready", "ready"] as const) : (["lost", "not ready"] as const);
  return (
    <p class="state">
      <span class={`health ${tone}`}>{words}</span>
      {seen && <span class="note">{things(nodes.value.length, "node")}, registry {seen.registry}</span>}
    </p>
  );
}

function ThemeButton(): JSX.Element {
  const next = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length] ?? "system";
  const name = { system: "Auto", light: "Light", dark: "Dark" }[theme.value];
  return (
    <button type="button" class="button quiet" aria-label={`Colours: ${name}`} title={`Colours: ${name}`} onClick={() => (theme.value = next)}>
      <Icon name={theme.value} />
      <span>{name}</span>
    </button>
  );
}

/** That nobody answers, above what was seen last. */
function Away(): JSX.Element | null {
  const now = contact.value;
  if (now.state !== "away") return null;
  const pause = Math.max(0, Math.round((now.next - Date.now()) / 1000));
  return (
    <div class="banner" role="alert">
      <p>
        <b>No contact: {now.why}.</b>{" "}
        {now.since === null ? "Nothing has been seen yet." : `What is shown is ${age(Date.now() - now.since)} old.`}{" "}
        {pause > 0 && `Asked again in ${age(1000 * pause)}.`}
      </p>
      <button type="button" class="button" onClick={refresh}>
        Ask now
      </button>
    </div>
  );
}
