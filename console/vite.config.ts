import { defineConfig, loadEnv } from "vite";

export default defineConfig(({ mode }) => {
  // `npm run dev` shows the pages of this folder over a coordinator that runs.
  const coordinator = loadEnv(mode, ".", "BATON_")["BATON_ADMIN"] ?? "http://127.0.0.1:8001";
  const passed = { target: coordinator, changeOrigin: true, headers: { origin: coordinator } };
  return {
    base: "./",
    build: {
      target: "es2022",
      // The policy of the pages lets scripts and styles come from files alone.
      assetsInlineLimit: 0,
      modulePreload: false,
    },
    server: { proxy: { "/admin": passed, "/console/api": passed } },
  };
});
