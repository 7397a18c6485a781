import Compute
import Decoder
import Quantization
import Tensors

/// So many processes that share a job, and what joins them.
public struct RankShare: Sendable {
  public let count: Int
  /// Of the network, in one direction, for each of them.
  public let gigabitsPerSecond: Double
  /// How many times as fast as this machine each of their hosts computes.
  public let speed: Double

  public init(count: Int, gigabitsPerSecond: Double = 10, speed: Double = 1) {
    precondition(
      count > 0 && gigabitsPerSecond > 0 && speed > 0, "somebody works, and is joined to the others")
    self.count = count
    self.gigabitsPerSecond = gigabitsPerSecond
    self.speed = speed
  }

  /// Nine tenths of what the wire has.
  var bytesPerSecond: Double { 0.9 * gigabitsPerSecond * 1e9 / 8 }

  /// The largest share that one rank has of so many things of one size, dealt in turn.
  func largest(of things: Int) -> Double {
    things == 0 ? 0 : Double((things + count - 1) / count) / Double(things)
  }

  /// Of rows, of which each rank has so many.
  func largest(ofRows rows: [Int]) -> Double {
    let all = rows.reduce(0, +)
    return all == 0 ? 0 : Double(rows.max() ?? 0) / Double(all)
  }
}

/// Deals the panels of a stage's linears: each to the rank that has the fewest rows so far. All ranks come to the same.
struct PanelDealer {
  /// By rank.
  private(set) var rows: [Int]
  /// Panels that are dealt.
  private(set) var count = 0

  init(ranks: Int) { rows = [Int](repeating: 0, count: ranks) }

  mutating func owner(ofRows panel: Int) -> Int {
    let owner = rows.indices.min { rows[$0] < rows[$1] } ?? 0
    rows[owner] += panel
    count += 1
    return owner
  }

  mutating func owners(of panels: [Range<Int>]) -> [Int] { panels.map { owner(ofRows: $0.count) } }
}

/// What the ranks of a job tell one another, in bytes.
///
/// What a rank makes goes to all others: with `once` bytes of it in all, p ranks send (p − 1) · once together, and each
/// receives (p − 1) / p · once. What an expert makes of a token goes to the token's rank alone.
public struct RankTraffic: Sendable, Equatable {
  /// What stages read, in the states' type.
  public var inputs = 0
  /// What the residual stream lacks, where both models run, in fp32.
  public var drifts = 0
  /// Tiles of Gram matrices, in fp32: once more where both models have run.
  public var grams = 0
  /// Codes, grids and figures of linears.
  public var rows = 0
  /// What experts make of their tokens, in fp32, if tokens are spread over them evenly.
  public var outputs = 0

  /// By each of so many ranks, on average.
  public func received(by count: Int) -> Int {
    let all = inputs + drifts + grams + rows
    return (all + outputs / count) * (count - 1) / count
  }
}

extension RunPlan {
  /// What ranks of this run tell one another.
  public func traffic(backend: any ComputeBackend) -> RankTraffic {
    traffic(backend.operandType(for: modelType), backend)
  }

  /// About what a rank of so many holds at the most of what it is sent, beside what one process takes: inputs of two rounds,
  /// and of what a shared expert makes its own tokens' rows. The others' codes of a stage stand in for its own, which have room in
  /// ``MemoryPlan`` already.
  public func rankBytes(_ count: Int) -> Int {
    if count == 1 { return 0 }
    let work = work(.float32)
    let length = settings.sequenceLength
    let batch = max(1, work.batchTokens / length) * length * model.widestStates
    let tokens = (work.samples + work.originalSamples) * length
    let shared = model.hasMixtures ? 2 * 4 * tokens * model.hiddenSize / count : 0
    return 2 * count * batch * 4 + (1 << 28) + shared
  }

  /// No journal's linears, and not what a head is quantized for.
  func traffic(_ operands: OperandType, _ backend: any ComputeBackend) -> RankTraffic {
    let work = work(operands)
    let tokens = work.samples * work.sequenceLength
    let originalTokens = work.originalSamples * work.sequenceLength
    var traffic = RankTraffic()
    for index in 0..<model.layerCount {
      for (number, stage) in model.stages(ofLayer: index).enumerated() {
        traffic.inputs += tokens * stage.columns(of: stage.inputSlot) * work.stateBytes
        let tiles = backend.gramTiles(order: stage.linears[0].inFeatures, operands: operands)
        let square = 4 * tiles.reduce(0) { $0 + $1.rows.count * $1.columns.count }
        // The first stage of all has the embedding before it, the same in both models.
        let drifts = stage.residualScale != nil && originalTokens > 0 && (index, number) != (0, 0)
        traffic.grams += drifts ? 2 * square : square
        if drifts { traffic.drifts += 4 * originalTokens * stage.hiddenSize }
        if stage.experts.isEmpty {
          traffic.rows += stage.linears.reduce(0) { $0 + rowBytes(of: $1, layer: index) }
        } else {
          // The router's, on both models' way.
          traffic.inputs += (tokens + originalTokens) * stage.hiddenSize * work.stateBytes
          let perToken = model.expertsPerToken(ofLayer: index) + stage.experts.count { $0.number == nil }
          traffic.outputs += 4 * (tokens + originalTokens) * perToken * stage.hiddenSize
        }
      }
    }
    // The last states of both models.
    if work.correctsHead { traffic.drifts += 2 * 4 * originalTokens * model.hiddenSize }
    return traffic
  }

  /// Codes of a byte, the grid in fp32, and three figures for every panel.
  private func rowBytes(of linear: LayerLinear, layer: Int) -> Int {
    guard let treatment = treatments[model.layerPrefix(layer) + linear.name] else { return 0 }
    let grid = Grid(
      format: treatment.gridFormat, outFeatures: linear.outFeatures, inFeatures: linear.inFeatures)
    let panels = MemoryPlan.panels(of: linear.outFeatures).count
    return linear.weightCount + 4 * grid.matrices.reduce(0) { $0 + $1.count } + 24
      * panels
  }
}
