import Collective
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
      let missing = try streams.reduce(0) { try $0 + lost($1, before: index, places).count }
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
    let missing = try streams.map { try lost($0, before: best.index, places) }
    for stream in streams {
      try stream.states.removeAll(beyond: stream.states.peek(through: places[best.index - 1].stage))
    }
    try deal(before: best.index, places)
    // Every rank walks where one of them has to, as they tell one another the weights on the way.
    let walks = zip(streams, missing).filter { !$1.isEmpty }.map { ($0, $1.filter(ranks.owns)) }
    if !walks.isEmpty { try walk(walks, places[..<(best.index - 1)], knowing: known, repeating) }
    return best.index
  }

  /// Brings a stream before a stage.
  /// - Returns: the batches that no rank has there
  private func lost(_ stream: Stream, before index: Int, _ places: [Place]) throws -> [Int] {
    let held = try stand(stream, before: index, places)
    if ranks.isAlone { return stream.batches.indices.filter { !held.contains($0) } }
    let all = Set(try gather(Array(held), MessageLabel(.holdings, number: index)).joined())
    return stream.batches.indices.filter { !all.contains($0) }
  }

  /// Sends the batches that a rank holds and that are another one's, as the job went on with more ranks, or fewer.
  private func deal(before index: Int, _ places: [Place]) throws {
    if ranks.isAlone { return }
    for stream in streams {
      let held = try stand(stream, before: index, places)
      let step = stream.states.peek(through: places[index - 1].stage)
      let holders = try gather(Array(held), MessageLabel(.holdings, number: index)).map(Set.init)
      // One from each at a time, and nobody begins the next round before all have ended this one.
      var left = stream.batches.indices.compactMap { batch -> (batch: Int, source: Int)? in
        if holders[ranks.owner(of: batch)].contains(batch) { return nil }
        return holders.firstIndex { $0.contains(batch) }.map { (batch, $0) }
      }
      while !left.isEmpty {
        var sources: Set<Int> = []
        let round = left.filter { sources.insert($0.source).inserted }
        let batches = Set(round.map(\.batch))
        left.removeAll { batches.contains($0.batch) }
        for (batch, source) in round { try deal(batch, from: source, of: stream, step) }
        _ = try ranks.gather([], MessageLabel(.holdings, number: index))
      }
    }
  }

  private func deal(
    _ batch: Int, from source: Int, of stream: Stream, _ step: StagedStates.Transition
  ) throws {
    let (label, owner) = (MessageLabel(.states, number: batch), ranks.owner(of: batch))
    let tokens = batches[batch].count * calibration.sequenceLength
    if source == ranks.rank {
      ranks.post(try stream.states.message(ofBatch: batch, beyond: step, tokens: tokens), label, to: owner)
    } else if owner == ranks.rank {
      let message = try ranks.receiveMessage(label, from: source)
      guard try stream.states.take(message, asBatch: batch, beyond: step, tokens: tokens) else {
        throw ranks.unlike(label, from: source)
      }
    }
  }

  /// Whether mixtures can be run on some batches alone. What they make of a token may otherwise depend, in the last bit, on
  /// how many others its expert is run on with it.
  private var isDivisible: Bool { backend.computesRowsAlike(for: quantized.model.operands) }

  /// Brings a stream before a stage.
  /// - Returns: the batches that the cache holds on the near side of the stage before it or, where that is of use, on the far
  ///   side
  private func stand(_ stream: Stream, before index: Int, _ places: [Place]) throws -> Set<Int> {
    stream.states.reset()
    stream.states.skip(stream.states.embeddingTransition())
    for place in places[..<(index - 1)] {
      stream.states.skip(stream.states.transition(through: place.stage, beginsLayer: false))
    }
    let step = stream.states.peek(through: places[index - 1].stage)
    let isOver = try stream.batches.indices.map { try step.isWritten(batch: $0) }
    var isOfUse = isDivisible || places[index - 1].stage.experts.isEmpty
    if !isOfUse {
      let over = stream.batches.indices.filter { isOver[$0] }
      let all = ranks.isAlone ? over : try gather(over, MessageLabel(.holdings, number: index)).flatMap { $0 }
      isOfUse = Set(all).count == stream.batches.count
    }
    return Set(
      try stream.batches.indices.filter { try isOfUse && isOver[$0] || stream.states.holds(batch: $0) })
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
