import Decoder

// Where the loop goes on with what an earlier one has left in the cache, and the batches that are missing there.
extension LayerLoop {
  /// Brings the streams before the stage to go on with: the first one that is `open`, or one before it that begins a
  /// layer, whichever takes the fewest steps of a batch through a stage. Every batch that the cache lacks there is computed
  /// from the embedding.
  ///
  /// What stands further on was left by a run that knew more, and is deleted, as all is where nothing is of use: a later run
  /// would take it for this one's.
  /// - Parameter repeating: called for every layer that missing batches pass
  /// - Returns: the stage; zero if all begin with the embedding
  func resume(
    before open: Int, _ places: [Place], knowing known: (any KnownLinears)?, repeating: (_ layer: Int) -> Void
  ) throws -> Int {
    let all = streams.reduce(0) { $0 + $1.batches.count }
    var best = (index: 0, steps: all * open)
    let starts = places.indices.filter { $0 < open && places[$0].number == 0 }
    for index in starts + [open] where index > 0 {
      let missing = try streams.reduce(0) { try $0 + stand($1, before: index, places).count }
      let passesMixture = places[..<index].contains { !$0.stage.experts.isEmpty }
      if missing > 0, passesMixture, !isDivisible { continue }
      let steps = missing * index + all * (open - index)
      if steps < best.steps { best = (index, steps) }
    }
    guard best.index > 0 else {
      for stream in streams { stream.states.reset() }
      try quantized.states.clear()
      return 0
    }
    let missing = try streams.map { try stand($0, before: best.index, places) }
    for stream in streams {
      try stream.states.removeAll(beyond: stream.states.peek(through: places[best.index - 1].stage))
    }
    let walks = zip(streams, missing).filter { !$1.isEmpty }
    if !walks.isEmpty { try walk(walks, places[..<(best.index - 1)], knowing: known, repeating) }
    return best.index
  }

  /// Whether mixtures can be run on some batches alone. What they make of a token may otherwise depend, in the last bit, on
  /// how many others its expert is run on with it.
  private var isDivisible: Bool { backend.computesRowsAlike(for: quantized.model.operands) }

  /// Brings a stream before a stage.
  /// - Returns: the batches that the cache holds neither on the near side of the stage before it nor, where that is of use,
  ///   on the far side
  private func stand(_ stream: Stream, before index: Int, _ places: [Place]) throws -> [Int] {
    stream.states.reset()
    stream.states.skip(stream.states.embeddingTransition())
    for place in places[..<(index - 1)] {
      stream.states.skip(stream.states.transition(through: place.stage, beginsLayer: false))
    }
    let step = stream.states.peek(through: places[index - 1].stage)
    let isOver = try stream.batches.indices.map { try step.isWritten(batch: $0) }
    let isOfUse = isDivisible || places[index - 1].stage.experts.isEmpty || !isOver.contains(false)
    return try stream.batches.indices.filter {
      try !(isOfUse && isOver[$0]) && !stream.states.holds(batch: $0)
    }
  }

  private typealias Walk = (stream: Stream, batches: [Int])

  /// Takes some batches from the embedding through stages that are done, and no others.
  private func walk(
    _ walks: [Walk], _ places: ArraySlice<Place>, knowing known: (any KnownLinears)?,
    _ repeating: (_ layer: Int) -> Void
  ) throws {
    for walk in walks { try embed(walk) }
    var layers = try layers(0)
    for place in places {
      if place.layer != layers.quantized.index {
        layers.quantized.forget()
        layers = try self.layers(place.layer)
      }
      if place.number == 0 { repeating(place.layer) }
      let here = position(layers, place.number)
      for walk in walks { try pass(here, walk, knowing: known) }
      leave(here)
    }
    layers.quantized.forget()
  }

  private func embed(_ walk: Walk) throws {
    walk.stream.states.reset()
    let step = walk.stream.states.embeddingTransition(beginsLayer: false)
    for batch in walk.batches {
      advanced()
      let state = LayerState(
        residual: try times.measure(.embedding) {
          try walk.stream.model.embed(calibration.tokens(of: batches[batch]))
        })
      try store(state, by: step, batch, layer: 0, after: "the embedding")
    }
    walk.stream.states.skip(step)
  }

  private func pass(_ here: Position, _ walk: Walk, knowing known: (any KnownLinears)?) throws {
    let stage = here.stage
    guard let layer = walk.stream === quantized ? here.quantized : here.original else { return }
    let known = walk.stream === quantized ? known : nil
    if stage.experts.isEmpty {
      try known?.restore(stage, in: layer)
      try load(stage, in: layer)
    } else {
      try runMixture(stage, layer, walk.stream, walk.batches, knowing: known)
    }
    let step = walk.stream.states.transition(through: stage, beginsLayer: false)
    for batch in walk.batches {
      advanced()
      let state = try run(walk.stream, stage, layer, reading: stage.reads, batch, batches[batch])
      try store(state, by: step, batch, layer: layer.index, after: stage.title)
    }
    walk.stream.states.skip(step)
  }
}
