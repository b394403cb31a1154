// The console: one page over the admin API.

import { type JSX, render } from "preact";
import "./style/tokens.css";
import "./style/base.css";
import "./style/shell.css";
import "./style/narrow.css";
import "./style/controls.css";
import "./style/dialog.css";
import "./style/cluster.css";
import "./style/pages.css";
import "./style/flow.css";
import "./style/tables.css";
import "./style/charts.css";
import "./style/playground.css";
import { ClusterPage } from "./pages/cluster";
import { IncidentsPage } from "./pages/incidents";
import { PlaygroundPage } from "./pages/playground";
import { RequestsPage } from "./pages/requests";
import { TimePage } from "./pages/time";
import { Dialog } from "./parts/dialog";
import { Gate } from "./parts/gate";
import { Notice } from "./parts/notice";
import { Shell } from "./parts/shell";
import { PAGES, place } from "./state/place";
import { begin, contact } from "./state/scene";

const VIEWS = {
  cluster: ClusterPage,
  time: TimePage,
  requests: RequestsPage,
  incidents: IncidentsPage,
  playground: PlaygroundPage,
};

function Console(): JSX.Element {
  const title = PAGES.find((page) => page.path === place.value)?.title ?? "";
  document.title = `${title} · Baton`;
  if (contact.value.state === "locked") return <Gate wrong={contact.value.wrong} />;
  const View = VIEWS[place.value];
  return (
    <>
      <Shell>
        <View />
      </Shell>
      <Dialog />
      <Notice />
    </>
  );
}

const root = document.getElementById("console");
if (root) render(<Console />, root);
begin();
