import Calibration
import Collective
import Compute
import Decoder
import Tensors

// What ranks tell one another of a stage. Batches are dealt to the ranks, and so are a Gram matrix's tiles: each rank adds
// all tokens to its own tiles, batch after batch as one machine would, and the sums have the same bits on any number of
// ranks.
extension LayerLoop {
  /// What a batch brings to a stage.
  struct Contribution {
    /// What the stage reads is in it.
    let state: LayerState
    /// What its linears read, if it has been made.
    var input: Matrix?
    /// What the residual stream lacks, where both models have run.
    var drift: Matrix?
  }

  /// Runs this rank's batches and adds what all bring to a stage.
  ///
  /// Ranks work by rounds, a batch each. What a round brings is on its way while the next one is computed.
  /// - Parameters:
  ///   - gram: that of the stage; nil if nothing is wanted of it
  ///   - drifting: so many batches, the first ones, bring a drift, too
  ///   - run: what a batch brings
  ///   - added: called in the batches' order after each was added, with what the stage's linears read of it
  func gather(
    into gram: GramMatrix?, of next: Position, drifting: Int = 0,
    _ run: (_ batch: Int) throws -> Contribution,
    added: (_ batch: Int, _ input: Matrix, _ drift: Matrix?) throws -> Void = { _, _, _ in }
  ) throws {
    func add(_ batch: Int, _ input: Matrix, _ drift: Matrix?) throws {
      guard let gram else { return }
      times.measure(.gram) { firstTokens.add(input, to: gram, of: next.stage, backend) }
      try added(batch, input, drift)
    }
    func input(_ contribution: Contribution) -> Matrix {
      contribution.input
        ?? times.measure(.forward) { next.quantized.input(of: next.stage, contribution.state) }
    }
    if ranks.isAlone {
      for batch in batches.indices {
        advanced()
        let contribution = try run(batch)
        if gram != nil { try add(batch, input(contribution), contribution.drift) }
      }
      return
    }
    var pending: (batches: Range<Int>, own: [MessageBytes])?
    func addPending() throws {
      guard let (round, own) = pending.take() else { return }
      // All of a round is there before any is added: behind the last drift the ranks send something else.
      let received = try round.map { batch in
        try ranks.owns(batch) ? own : receive(batch, of: next, hasDrift: batch < drifting)
      }
      for (batch, parts) in zip(round, received) {
        let state = try state(parts[0], batch, of: next)
        let drift = try parts.dropFirst().first.map { try self.drift($0, batch, of: next) }
        try add(batch, next.quantized.input(of: next.stage, state), drift)
      }
    }
    for round in batches.indices.parts(of: ranks.count) {
      // Behind the last drift comes an exchange of its own, ahead of what the next round sends.
      if pending?.batches.contains(drifting - 1) == true { try addPending() }
      var own: [MessageBytes] = []
      if let batch = round.first(where: ranks.owns) {
        advanced()
        let contribution = try run(batch)
        if gram != nil { own = post(contribution, batch, of: next) }
      }
      try addPending()
      if gram != nil { pending = (round, own) }
    }
    try addPending()
    if let gram { try exchange(gram, of: next) }
  }

  func label(_ kind: MessageLabel.Kind, of place: Position, _ number: Int) -> MessageLabel {
    MessageLabel(kind, layer: place.quantized.index, stage: place.number, number: number)
  }

  /// Sends what a batch of this rank brings to all others.
  /// - Returns: what was sent
  private func post(_ contribution: Contribution, _ batch: Int, of next: Position) -> [MessageBytes] {
    guard let slot = contribution.state[next.stage.inputSlot] else {
      preconditionFailure("a stage's input is there")
    }
    var parts = [post(slot, label(.input, of: next, batch))]
    if let drift = contribution.drift {
      parts.append(post(drift, label(.drift, of: next, batch), as: .float32))
    }
    return parts
  }

  /// Sends a matrix to all others.
  /// - Parameter type: what its values are rounded to; that of states if nil
  /// - Returns: what was sent
  private func post(_ matrix: Matrix, _ label: MessageLabel, as type: DType? = nil) -> MessageBytes {
    let message = times.measure(.exchange) {
      backend.withHostMatrix(matrix, for: .reading) {
        $0.message(as: type ?? quantized.states.elementType)
      }
    }
    ranks.postToAll(message, label)
    return message
  }

  /// A matrix that a rank sends.
  /// - Parameter known: what it sends, if that is here already
  func receive(
    _ known: MessageBytes?, _ label: MessageLabel, from source: Int, rows: Int, columns: Int, _ type: DType
  ) throws -> Matrix {
    let message = try known ?? times.measure(.waiting) { try ranks.receiveMessage(label, from: source) }
    let matrix = backend.makeMatrix(rows: rows, columns: columns)
    try times.measure(.exchange) {
      try backend.withHostMatrix(matrix, for: .writing) { host in
        if !host.take(message, as: type) { throw ranks.unlike(label, from: source) }
      }
    }
    return matrix
  }

  /// Has every rank know a matrix of each of some batches, of which each makes those of its own; one of each rank is under way at
  /// a time.
  /// - Parameters:
  ///   - chosen: the batches, in order
  ///   - columns: of the matrices
  ///   - count: their rows for every token
  ///   - type: what their values are rounded to
  ///   - make: called for this rank's batches
  ///   - take: called for all batches, in order
  func shareEach(
    _ chosen: [Int], columns: Int, matrices count: Int = 1, as type: DType,
    _ label: (_ batch: Int) -> MessageLabel,
    make: (_ batch: Int) throws -> Matrix, take: (_ batch: Int, Matrix) throws -> Void
  ) throws {
    for round in chosen.indices.parts(of: ranks.count) {
      var own: [Int: MessageBytes] = [:]
      for batch in chosen[round] where ranks.owns(batch) {
        advanced()
        let matrix = try make(batch)
        if ranks.isAlone {
          try take(batch, matrix)
        } else {
          own[batch] = post(matrix, label(batch), as: type)
        }
      }
      for batch in chosen[round] where !ranks.isAlone {
        let rows = count * batches[batch].count * calibration.sequenceLength
        try take(
          batch,
          receive(own[batch], label(batch), from: ranks.owner(of: batch), rows: rows, columns: columns, type))
      }
    }
  }

  /// Numbers of every rank, in the ranks' order.
  func gather(_ own: [Int], _ label: MessageLabel) throws -> [[Int]] {
    var writer = ByteWriter()
    writer.append(own)
    return try ranks.gather(writer.bytes, label).map { bytes in
      var reader = ByteReader()
      return reader.values(Int.self, count: bytes.count / MemoryLayout<Int>.stride, of: bytes) ?? []
    }
  }

  /// What a batch of another rank brings to a stage, as that one has sent it.
  private func receive(_ batch: Int, of next: Position, hasDrift: Bool) throws -> [MessageBytes] {
    try ([.input] + (hasDrift ? [.drift] : [])).map { kind in
      try times.measure(.waiting) {
        try ranks.receiveMessage(label(kind, of: next, batch), from: ranks.owner(of: batch))
      }
    }
  }

  private func state(_ message: MessageBytes, _ batch: Int, of next: Position) throws -> LayerState {
    let slot = next.stage.inputSlot
    var state = LayerState(residual: Matrix(rows: 0, columns: 0))
    state[slot] = try receive(
      message, label(.input, of: next, batch), from: ranks.owner(of: batch),
      rows: batches[batch].count * calibration.sequenceLength, columns: next.stage.columns(of: slot),
      quantized.states.elementType)
    return state
  }

  private func drift(_ message: MessageBytes, _ batch: Int, of next: Position) throws -> Matrix {
    try receive(
      message, label(.drift, of: next, batch), from: ranks.owner(of: batch),
      rows: batches[batch].count * calibration.sequenceLength, columns: next.stage.hiddenSize, .float32)
  }

  /// So many elements of tiles are under way at a time.
  private static let elementsUnderWay = 1 << 24

  /// Has every rank know all tiles of a Gram matrix.
  func exchange(_ gram: GramMatrix, of place: Position) throws {
    try exchange(gram, label(.gram, of: place, 0))
  }

  func exchange(_ gram: GramMatrix, _ place: MessageLabel) throws {
    if ranks.isAlone { return }
    func label(_ tile: Int) -> MessageLabel {
      MessageLabel(.gram, layer: place.layer, stage: place.stage, number: tile)
    }
    try times.measure(.waiting) {
      var first = 0
      while first < gram.tiles.count {
        var (last, elements) = (first, 0)
        while last < gram.tiles.count, elements < Self.elementsUnderWay {
          elements += gram.tiles[last].rows.count * gram.tiles[last].columns.count
          last += 1
        }
        try backend.withHostMatrix(gram.values, for: .changing) { host in
          for tile in first..<last where ranks.owns(tile) {
            ranks.postToAll(host.message(of: gram.tiles[tile]), label(tile))
          }
          for tile in first..<last where !ranks.owns(tile) {
            let source = ranks.owner(of: tile)
            guard host.take(try ranks.receiveMessage(label(tile), from: source), as: gram.tiles[tile]) else {
              throw ranks.unlike(label(tile), from: source)
            }
          }
        }
        first = last
      }
    }
  }
}

extension Ranks {
  /// A message that does not hold what its label promises.
  func unlike(_ label: MessageLabel, from source: Int) -> RankError {
    .unexpected(name(source), expected: "\(label)", found: "\(label) of another size")
  }
}
