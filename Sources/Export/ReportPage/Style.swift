/// The style sheet of the report's page and the daemon's. Colours are variables, one set for light screens and one for dark ones;
/// on a phone the chart's letters grow, because the picture shrinks with the screen.
package let pageStyle = """
  :root {
    color-scheme: light dark;
    --page: #f6f7f9; --sheet: #ffffff; --text: #1a2030; --soft: #5d6678; --line: #dfe3ea;
    --accent: #2f5fd0; --good: #17793f; --bad: #b3362b; --code: #f1f3f7;
    --c0: #2f6fde; --c1: #d9681d; --c2: #168a5b; --c3: #b23b8f;
    --c4: #7a5bd0; --c5: #a37708; --c6: #0e8fa8; --c7: #c23a4b;
  }
  @media (prefers-color-scheme: dark) {
    :root {
      --page: #11141b; --sheet: #191e28; --text: #e7eaf1; --soft: #9aa4b6; --line: #2c3342;
      --accent: #8db0ff; --good: #5fd08f; --bad: #ff8d80; --code: #11151d;
      --c0: #79a7ff; --c1: #ff9f5c; --c2: #4fcf97; --c3: #f08bd0;
      --c4: #b49cff; --c5: #e2b93b; --c6: #4fd0e6; --c7: #ff8494;
    }
  }
  * { box-sizing: border-box }
  body {
    margin: 0; background: var(--page); color: var(--text);
    font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  }
  main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px }
  h1 { margin: 0; font-size: clamp(1.6rem, 5vw, 2.4rem); line-height: 1.15; overflow-wrap: anywhere }
  h2 { margin: 0 0 8px; font-size: 1.15rem }
  h3 { margin: 16px 0 4px; font-size: .95rem }
  .kicker { margin: 0 0 4px; color: var(--accent); font-weight: 600; letter-spacing: .02em }
  .lead { margin: 8px 0 20px; color: var(--soft); overflow-wrap: anywhere }
  .hint, .note { color: var(--soft); font-size: .9rem; margin: 0 0 12px }
  .cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(225px, 1fr)) }
  .card, section {
    background: var(--sheet); border: 1px solid var(--line); border-radius: 12px; padding: 20px;
  }
  .card { padding: 16px 18px }
  .card h2 { font-size: .85rem; font-weight: 500; color: var(--soft); margin: 0 }
  .card .value { margin: 2px 0; font-size: 1.3rem; font-weight: 650; white-space: nowrap }
  .card .note { margin: 0; font-size: .82rem }
  section { margin-top: 16px }

  .chart { margin: 0 }
  svg { display: block; width: 100%; height: auto; overflow: visible }
  svg text { fill: var(--soft); font-size: 13px }
  svg .label { fill: var(--text) }
  .grid { stroke: var(--line) }
  .series path { fill: none; stroke: var(--colour); stroke-width: 1.8; stroke-linejoin: round }
  .series circle { fill: var(--colour); stroke: var(--sheet); stroke-width: 1 }
  .series circle:hover { stroke: var(--text); stroke-width: 2 }
  .series.dashed path { stroke-dasharray: 6 4 }
  svg:has(.series:hover) .series:not(:hover) { opacity: .2 }
  .colour-0 { --colour: var(--c0) } .colour-1 { --colour: var(--c1) }
  .colour-2 { --colour: var(--c2) } .colour-3 { --colour: var(--c3) }
  .colour-4 { --colour: var(--c4) } .colour-5 { --colour: var(--c5) }
  .colour-6 { --colour: var(--c6) } .colour-7 { --colour: var(--c7) }
  .legend { display: flex; flex-wrap: wrap; gap: 6px 18px; margin-top: 8px; font-size: .9rem }
  .legend label { cursor: pointer; display: inline-flex; align-items: center }
  .legend input { position: absolute; opacity: 0 }
  .legend label:has(:focus-visible) { outline: 2px solid var(--accent); border-radius: 4px }
  .legend label:has(input:not(:checked)) { opacity: .4; text-decoration: line-through }
  .key {
    display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px;
    background: var(--colour); vertical-align: -1px; flex: none;
  }

  .map rect { stroke: var(--sheet); stroke-width: .5 }
  .map .idle { fill: var(--bad) }
  .ramp { display: inline-flex; margin: 0 10px }
  .ramp span { width: 18px; height: 12px; background: var(--c0) }
  .scale { justify-content: center; align-items: center }
  .shade-0 { fill: var(--c0); opacity: .1 } .shade-1 { fill: var(--c0); opacity: .22 }
  .shade-2 { fill: var(--c0); opacity: .34 } .shade-3 { fill: var(--c0); opacity: .46 }
  .shade-4 { fill: var(--c0); opacity: .58 } .shade-5 { fill: var(--c0); opacity: .7 }
  .shade-6 { fill: var(--c0); opacity: .84 } .shade-7 { fill: var(--c0); opacity: 1 }

  .bar { display: flex; gap: 2px; height: 26px; border-radius: 6px; overflow: hidden; margin: 12px 0 }
  .bar span { background: var(--colour); min-width: 2px }

  table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }
  th, td { padding: 6px 12px; text-align: right; border-bottom: 1px solid var(--line) }
  tr > :first-child { text-align: left; padding-left: 0 }
  tr > :last-child { padding-right: 0 }
  tbody tr:last-child > * { border-bottom: 0 }
  thead th { color: var(--soft); font-weight: 500; white-space: nowrap }
  tbody th { font-weight: 500 }
  td { white-space: nowrap }
  td.wide { white-space: normal; color: var(--soft) }
  .narrow { width: auto; min-width: min(100%, 420px) }
  .texts th, .texts td { text-align: left }
  .texts + .hint { margin-top: 16px }
  .yes { color: var(--good) } .no { color: var(--bad) }
  .meter { width: 28% }
  .meter span {
    display: block; height: 8px; border-radius: 4px; background: var(--accent); opacity: .75;
  }
  dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px 24px; margin: 0 }
  dt { color: var(--soft); font-size: .85rem }
  dd { margin: 0; overflow-wrap: anywhere }
  pre { background: var(--code); border-radius: 8px; padding: 12px 14px; overflow-x: auto; margin: 0 }
  code { font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace }
  summary { cursor: pointer; font-weight: 600 }
  .scroll { overflow-x: auto; margin-top: 12px }

  @media (max-width: 640px) {
    main { padding: 20px 12px 40px }
    section { padding: 16px 14px }
    .cards, dl { grid-template-columns: 1fr 1fr }
    .card { padding: 12px 14px }
    .card .value { font-size: 1.1rem }
    svg text { font-size: 23px }
    svg .tick { font-size: 21px }
    .series path { stroke-width: 3 }
    th, td { padding: 6px }
    .meter, .texts thead { display: none }
    .texts tr { display: flex; flex-wrap: wrap; padding: 6px 0; border-bottom: 1px solid var(--line) }
    .texts th, .texts td { border: 0; padding: 0 12px 0 0 }
    .texts .wide { flex-basis: 100% }
  }
  """
