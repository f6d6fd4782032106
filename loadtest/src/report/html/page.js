"use strict";
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const dashes = ["solid", "dash", "dashdot", "dot"];
  const symbols = ["circle", "square", "diamond", "triangle-up", "cross", "star"];
  const stageNames = ["decode", "preprocess", "queue", "policy", "backbone", "rest"];
  // Pastels that dark text can be read on, told apart by the colour-blind, the same in the light and in the dark.
  const stageColours = ["#77aadd", "#99ddff", "#dddddd", "#eedd88", "#ee8866", "#bbcc33"];
  const coarse = matchMedia("(pointer: coarse)");
  let stretched = false;

  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Plotly takes some markup in texts; names have none.
  const text = of => of.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const name = arm => text(data.arms[arm]);
  const colour = arm => css(`--arm-${arm % 6}`);
  const dash = arm => dashes[Math.floor(arm / 6) % dashes.length];
  const symbol = arm => symbols[arm % symbols.length];
  const box = arm => `<extra>${name(arm)}</extra>`;
  const narrow = () => document.documentElement.clientWidth < 640;

  function axis(title, more = {}) {
    return {
      title: { text: title, standoff: 8 },
      color: css("--quiet"),
      gridcolor: css("--rule"),
      zerolinecolor: css("--rule"),
      linecolor: css("--rule"),
      automargin: true,
      ...more,
    };
  }

  // Ticks of a logarithmic axis at 1, 2 and 5 times the powers of ten.
  function logAxis(title, values) {
    const tickvals = [];
    for (let power = -3; power < 8; power++) for (const step of [1, 2, 5]) tickvals.push(step * 10 ** power);
    const [low, high] = [Math.min(...values), Math.max(...values)].map(Math.log10);
    const room = Math.max((high - low) * 0.06, 0.05);
    return axis(title, {
      type: "log",
      tickvals,
      ticktext: tickvals.map(value => String(Number(value.toPrecision(1)))),
      range: [low - room, high + room],
      minor: { ticks: "" },
    });
  }

  // Linear from 0, or logarithmic where a linear one would flatten all but the highest.
  function latencyAxis(title, values) {
    const found = values.filter(value => value > 0);
    const spread = Math.max(...found) / Math.min(...found);
    return spread > 20 ? logAxis(title, found) : axis(title, { rangemode: "tozero" });
  }

  function objective(along) {
    if (!data.slo) return {};
    const across = along === "x" ? "y" : "x";
    return {
      shapes: [{
        type: "line", layer: "between", line: { color: css("--quiet"), width: 1.5, dash: "dash" },
        [`${across}0`]: data.slo.ms, [`${across}1`]: data.slo.ms,
        [`${along}ref`]: "paper", [`${along}0`]: 0, [`${along}1`]: 1,
      }],
    };
  }

  function objectiveNote(along, logarithmic) {
    if (!data.slo) return {};
    const at = logarithmic ? Math.log10(data.slo.ms) : data.slo.ms;
    const place = along === "x"
      ? { xref: "paper", x: 1, xanchor: "right", y: at, yanchor: "bottom" }
      : { yref: "paper", y: 0.02, yanchor: "bottom", x: at, xanchor: "right" };
    return { annotations: [{ ...place, text: text(data.slo.text), showarrow: false, font: { color: css("--quiet") } }] };
  }

  const draw = {
    ratios(figure) {
      const names = [];
      for (const { rows } of figure) for (const row of rows) if (!names.includes(row.name)) names.push(row.name);
      const traces = figure.map(({ arm, rows }, at) => {
        const apart = figure.length > 1 ? (at / (figure.length - 1) - 0.5) * 0.5 : 0;
        const ends = rows.map(row => Number.isFinite(row.low) && Number.isFinite(row.high));
        return {
          name: name(arm), mode: "markers", type: "scatter",
          x: rows.map(row => row.value), y: rows.map(row => names.indexOf(row.name) + apart),
          customdata: rows.map((row, at) => [
            text(row.name), row.value.toFixed(3), ends[at] ? ` (${row.low.toFixed(3)} to ${row.high.toFixed(3)})` : "",
          ]),
          hovertemplate: `%{customdata[0]} %{customdata[1]}%{customdata[2]}${box(arm)}`,
          marker: {
            color: colour(arm), size: 9,
            symbol: rows.map(row => row.name === "FLOPs" ? `${symbol(arm)}-open` : symbol(arm)),
            line: { width: 2, color: colour(arm) },
          },
          error_x: {
            type: "data", symmetric: false, thickness: 2, width: 6, color: colour(arm),
            array: rows.map((row, at) => ends[at] ? row.high - row.value : 0),
            arrayminus: rows.map((row, at) => ends[at] ? row.value - row.low : 0),
          },
        };
      });
      const values = figure.flatMap(({ rows }) => rows.flatMap(row => [row.value, row.low, row.high])).filter(Number.isFinite);
      const [low, high] = [Math.min(1, ...values), Math.max(1, ...values)];
      const room = Math.max((high - low) * 0.08, 0.02);
      return [traces, {
        showlegend: figure.length > 1,
        xaxis: axis("ratio to the baseline", { range: [low - room, high + room], zeroline: false }),
        yaxis: axis("", {
          tickvals: names.map((_, at) => at), ticktext: names.map(text), range: [names.length - 0.5, -0.5], zeroline: false,
        }),
        shapes: [{ type: "line", x0: 1, x1: 1, yref: "paper", y0: 0, y1: 1, line: { color: css("--ink"), width: 1 } }],
      }];
    },

    cdf(figure) {
      const height = (share, count) => stretched ? -Math.log10(Math.max(1 - share, 0.5 / count)) : share;
      const traces = figure.map(({ arm, count, ms, shares }) => ({
        name: name(arm), mode: "lines", type: "scatter", x: ms, y: shares.map(share => height(share, count)),
        line: { color: colour(arm), dash: dash(arm), width: 2 },
        customdata: shares.map(share => (share * 100).toFixed(share > 0.99 ? 3 : 1)),
        hovertemplate: `%{customdata} % within %{x:.3~f} ms${box(arm)}`,
      }));
      const shares = [0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999];
      const yaxis = stretched
        ? { tickvals: shares.map(share => -Math.log10(1 - share)), ticktext: shares.map(share => `${+(share * 100).toFixed(3)} %`) }
        : { tickformat: ".0%", range: [0, 1.02] };
      return [traces, {
        xaxis: logAxis("latency, ms", figure.flatMap(({ ms }) => ms)),
        yaxis: axis("requests", yaxis),
        ...objective("y"), ...objectiveNote("y", true),
      }];
    },

    ramp({ quantile, steps }) {
      const arms = [...new Set(steps.map(step => step.arm))];
      const traces = arms.map(arm => {
        const of = steps.filter(step => step.arm === arm);
        return {
          name: name(arm), mode: "lines+markers", type: "scatter",
          x: of.map(step => step.achieved), y: of.map(step => step.ms),
          line: { color: colour(arm), dash: dash(arm), width: 2 },
          marker: {
            color: colour(arm), size: 10, line: { width: 2, color: colour(arm) },
            symbol: of.map(step => step.held ? symbol(arm) : `${symbol(arm)}-open`),
          },
          customdata: of.map(step => [step.rate, step.held ? "objective met" : "objective missed"]),
          hovertemplate: `%{customdata[0]:,.4~r}/s due, %{x:,.4~r}/s answered<br>${quantile} %{y:.3~r} ms, %{customdata[1]}${box(arm)}`,
        };
      });
      const found = steps.map(step => step.ms).concat(data.slo ? data.slo.ms : []);
      const yaxis = latencyAxis(`${quantile}, ms`, found);
      return [traces, {
        xaxis: axis("requests answered in a second", { rangemode: "tozero" }), yaxis,
        ...objective("x"), ...objectiveNote("x", yaxis.type === "log"),
      }];
    },

    blocks(figure) {
      const traces = figure.map(({ arm, blocks, shares, counts }) => ({
        name: name(arm), type: "bar", x: blocks, y: shares, marker: { color: colour(arm) },
        customdata: counts, hovertemplate: `%{x} blocks: %{y:.1%} (%{customdata:,} images)${box(arm)}`,
      }));
      return [traces, {
        barmode: "group", bargap: 0.15,
        xaxis: axis("blocks kept", { dtick: 1, zeroline: false }), yaxis: axis("images", { tickformat: ".0%" }),
      }];
    },

    by_blocks(figure) {
      const traces = figure.map(({ arm, blocks, p10, p50, p90, counts }, at) => {
        const apart = figure.length > 1 ? (at / (figure.length - 1) - 0.5) * 0.24 : 0;
        return {
          name: name(arm), mode: "lines+markers", type: "scatter", x: blocks.map(kept => kept + apart), y: p50,
          line: { color: colour(arm), dash: dash(arm), width: 2 }, marker: { color: colour(arm), size: 7, symbol: symbol(arm) },
          error_y: {
            type: "data", symmetric: false, thickness: 1.5, width: 4, color: colour(arm),
            array: p90.map((high, at) => high - p50[at]), arrayminus: p10.map((low, at) => p50[at] - low),
          },
          customdata: counts.map((count, at) => [blocks[at], p10[at].toPrecision(3), p90[at].toPrecision(3), count]),
          hovertemplate: `%{customdata[0]} blocks: p50 %{y:.3~r} ms, p10 %{customdata[1]}, p90 %{customdata[2]}<br>%{customdata[3]:,} requests${box(arm)}`,
        };
      });
      const xaxis = axis("blocks kept", { dtick: 1, zeroline: false });
      return [traces, { xaxis, yaxis: axis("latency, ms", { rangemode: "tozero" }) }];
    },

    series({ bin, arms }) {
      const last = Math.max(...arms.flatMap(({ at }) => at));
      const [unit, word] = last > 3 * 3600 ? [3600, "hours"] : last > 600 ? [60, "minutes"] : [1, "seconds"];
      const traces = [];
      const wrong = [["refused", "refused", 0.4], ["failed", "failed", 1], ["timed_out", "timed out", 1]];
      const any = arms.some(arm => wrong.some(([key]) => arm[key].some(count => count > 0)));
      const markers = arms.length > 1 && arms.every(({ at }) => at.length < 400);
      for (const { arm, at, ...of } of arms) {
        const x = at.map(second => second / unit);
        const moment = `%{x:.6~r} ${word}`;
        const line = (key, more) => ({
          type: "scatter", mode: markers ? "lines+markers" : "lines", x, y: of[key], legendgroup: arm, showlegend: false,
          marker: { size: 4, color: colour(arm) }, connectgaps: key === "rate", ...more,
        });
        traces.push(line("rate", {
          name: name(arm), showlegend: true, line: { color: colour(arm), width: 2 },
          hovertemplate: `${moment}: %{y:,.4~r} requests/s${box(arm)}`,
        }));
        traces.push(line("p50", {
          yaxis: "y2", line: { color: colour(arm), width: 2 }, hovertemplate: `${moment}: p50 %{y:.3~r} ms${box(arm)}`,
        }));
        traces.push(line("p99", {
          yaxis: "y2", line: { color: colour(arm), width: 1.5, dash: "dot" }, hovertemplate: `${moment}: p99 %{y:.3~r} ms${box(arm)}`,
        }));
        if (!any) continue;
        for (const [key, said, opacity] of wrong) {
          traces.push({
            type: "bar", x, y: of[key], yaxis: "y3", legendgroup: arm, showlegend: false, opacity, width: bin / unit,
            marker: { color: colour(arm) }, hovertemplate: `${moment}: %{y:,} ${said}${box(arm)}`,
          });
        }
      }
      const latencies = arms.flatMap(({ p50, p99 }) => [...p50, ...p99]).filter(Number.isFinite);
      return [traces, {
        xaxis: axis(`${word} since the start`, { anchor: any ? "y3" : "y2", zeroline: false }),
        yaxis: axis("requests/s", { domain: any ? [0.66, 1] : [0.54, 1], rangemode: "tozero" }),
        yaxis2: { ...latencyAxis("latency, ms", latencies.length ? latencies : [1]), domain: any ? [0.24, 0.6] : [0, 0.46] },
        ...(any && { yaxis3: axis("not answered", { domain: [0, 0.18], rangemode: "tozero", tickformat: "~s" }) }),
        barmode: "stack",
      }];
    },

    stages(figure) {
      const traces = stageNames.map((stage, at) => ({
        name: stage, type: "bar", orientation: "h",
        x: figure.map(({ ms }) => ms[at]), y: figure.map((_, at) => at),
        marker: { color: stageColours[at], line: { color: css("--surface"), width: 1 } },
        text: figure.map(({ ms }) => String(Number(ms[at].toPrecision(2)))), textposition: "inside", insidetextanchor: "middle", textangle: 0,
        insidetextfont: { color: "#1b1a17" }, constraintext: "none",
        hovertemplate: `${stage} %{x:.3~r} ms<extra></extra>`,
      })).filter(trace => trace.x.some(ms => ms > 0));
      // A number stands only where it has room.
      const most = Math.max(...figure.map(({ ms }) => ms.reduce((sum, part) => sum + part, 0)));
      for (const trace of traces) trace.text = trace.x.map((ms, at) => ms > most * (narrow() ? 0.12 : 0.06) ? trace.text[at] : "");
      return [traces, {
        barmode: "stack", bargap: 0.3, uniformtext: { mode: "hide", minsize: 9 },
        xaxis: axis("ms of an image"),
        yaxis: axis("", {
          tickvals: figure.map((_, at) => at), ticktext: figure.map(({ arm }) => name(arm)),
          range: [figure.length - 0.5, -0.5], zeroline: false,
        }),
      }];
    },
  };

  function show(id) {
    const [traces, layout] = draw[id](data.figures[id]);
    Plotly.react(id, traces, {
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      font: { color: css("--ink"), family: getComputedStyle(document.body).fontFamily, size: narrow() ? 11 : 13 },
      margin: { l: 8, r: 16, t: 8, b: 8 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal" },
      showlegend: data.arms.length > 1 || id === "stages",
      hovermode: "closest",
      hoverlabel: { bgcolor: css("--surface"), bordercolor: css("--quiet"), font: { color: css("--ink") }, namelength: -1 },
      // A finger scrolls the page.
      dragmode: coarse.matches ? false : "zoom",
      ...layout,
    }, { responsive: true, displaylogo: false, displayModeBar: false });
  }

  const all = () => Object.keys(data.figures).forEach(show);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  const tail = document.getElementById("tail");
  tail?.addEventListener("click", () => {
    stretched = !stretched;
    tail.setAttribute("aria-pressed", stretched);
    show("cdf");
  });
  all();
}
