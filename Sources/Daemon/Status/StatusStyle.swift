/// What the status page adds to the style sheet that it shares with the report's page.
let statusStyle = """
  :root { --warn: #8f6400; --warn-soft: #fdf3d9; --bad-soft: #fcebe9; --good-soft: #e3f4e9; --mute: #eef0f4 }
  @media (prefers-color-scheme: dark) {
    :root { --warn: #f0c35a; --warn-soft: #33290f; --bad-soft: #35201f; --good-soft: #16301f; --mute: #232936 }
  }
  main { max-width: 860px }
  p { margin: 0 }
  .kicker { display: flex; align-items: center; gap: 10px; margin: 0 0 6px }
  .lead { margin: 8px 0 20px }
  .cards { grid-template-columns: repeat(4, minmax(0, 1fr)) }
  .card .note { overflow-wrap: anywhere }
  .card .value { overflow: hidden; text-overflow: ellipsis }
  section > h2 { overflow-wrap: anywhere }
  .hint.last { margin: 0 }

  .mood, .tag {
    display: inline-block; flex: none; padding: 1px 10px; border-radius: 99px; font-size: .8rem;
    font-weight: 600; letter-spacing: 0; color: var(--soft); background: var(--mute);
  }
  .mood.working, .tag.working, .tag.published { color: var(--good); background: var(--good-soft) }
  .mood.paused, .mood.held, .tag.arriving, .tag.paused { color: var(--warn); background: var(--warn-soft) }
  .tag.queued { color: var(--accent); background: var(--mute) }
  .tag.failed, .tag.refused { color: var(--bad); background: var(--bad-soft) }

  .notice {
    margin: 4px 0 14px; padding: 10px 14px; border-radius: 8px; background: var(--warn-soft);
    overflow-wrap: anywhere;
  }
  .amounts { display: flex; justify-content: space-between; align-items: baseline; gap: 12px; color: var(--soft) }
  .amounts strong { font-size: 1.3rem; color: var(--text); font-variant-numeric: tabular-nums }
  .track { height: 12px; margin: 6px 0 20px; border-radius: 6px; background: var(--mute); overflow: hidden }
  .track span { display: block; height: 100%; min-width: 4px; border-radius: 6px; background: var(--accent) }
  .track .paused, .track .held { background: var(--warn) }
  section dl { grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)) }
  dl > div { min-width: 0 }
  .chart .series { --colour: var(--accent) }

  .jobs { list-style: none; margin: 0; padding: 0 }
  .job { padding: 12px 0; border-top: 1px solid var(--line); overflow-wrap: anywhere }
  .job:first-child { border-top: 0; padding-top: 4px }
  .job:last-child { padding-bottom: 0 }
  .top { display: flex; justify-content: space-between; align-items: baseline; gap: 12px }
  .top strong { min-width: 0; font-weight: 600 }
  .facts { color: var(--soft); font-size: .9rem }
  .reasons { list-style: disc; margin: 6px 0 0; padding-left: 20px; font-size: .9rem }
  .path { font-size: .9rem; margin-top: 2px }
  .path code, dd code { overflow-wrap: anywhere }
  .failure {
    margin-top: 8px; padding: 10px 14px; border-left: 3px solid var(--bad); border-radius: 0 8px 8px 0;
    background: var(--bad-soft); font-size: .92rem;
  }
  .failure .mend { margin-top: 4px; font-weight: 600 }
  .failure .code { color: var(--soft); white-space: nowrap }
  .failure .code::before { content: "exit status " }
  footer { margin-top: 24px; color: var(--soft); font-size: .85rem }
  footer a { color: inherit }

  @media (max-width: 640px) {
    .cards, section dl { grid-template-columns: repeat(2, minmax(0, 1fr)) }
    /* The heading says it, and the ticks need the room. */
    svg .label[transform] { display: none }
  }
  """
