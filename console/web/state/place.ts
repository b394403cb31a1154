// Which page is open: what stands behind `#/`.

import { signal } from "@preact/signals";

export const PAGES = [
  { path: "cluster", title: "Cluster" },
  { path: "time", title: "Time" },
  { path: "requests", title: "Requests" },
  { path: "incidents", title: "Incidents" },
  { path: "playground", title: "Playground" },
] as const;
export type Path = (typeof PAGES)[number]["path"];

export const place = signal<Path>(here());

function here(): Path {
  const named = location.hash.replace(/^#\//, "");
  return PAGES.find((page) => page.path === named)?.path ?? "cluster";
}

addEventListener("hashchange", () => {
  place.value = here();
});
