import Compute
import Decoder
import Solvers
import Tensors

/// What a rank of a job multiplies, each time with an addition.
public struct RankProducts: Sendable, Equatable {
  /// The layers' linears on the rank's batches, those of the original model included.
  public var forward = 0
  /// The rank's tiles of Gram matrices.
  public var gram = 0
  /// The rank's rows of what moves the targets.
  public var drift = 0
  /// Cholesky factors, of which every rank has its own, but for those of experts.
  public var factors = 0
  /// About what the descents of QuantEase take, on the rank's rows: their number of passes is the weights'.
  public var descent = 0

  /// Operations, of which a multiplication and an addition are two.
  public var operations: Double { 2 * Double(forward + gram + drift + factors + descent) }
}

extension RunPlan {
  /// Products with Σ that a descent comes to, with the passes in which few columns move: fewer on wide matrices.
  private static let descentPasses = (narrow: 10, wide: 5)
  private static let leastWide = 4_096

  /// What the rank that has most multiplies, if experts and their tokens are shared evenly; without a head that is quantized.
  public func products(ranks count: Int, backend: any ComputeBackend) -> RankProducts {
    let work = work(.float32)
    return (0..<count)
      .map { products(of: $0, of: count, batchSamples: work.batchSamples, backend: backend) }
      .max { $0.operations < $1.operations } ?? RankProducts()
  }

  /// - Parameters:
  ///   - rank: of `count`
  ///   - batchSamples: sequences of a batch
  func products(
    of rank: Int, of count: Int, batchSamples: Int, backend: any ComputeBackend
  ) -> RankProducts {
    let operands = backend.operandType(for: modelType)
    let batches = batches(of: batchSamples)
    let own = batches.indices.filter { $0 % count == rank }.map { batches[$0] }
    let (length, originalSamples) = (settings.sequenceLength, work(operands).originalSamples)
    let tokens = length * own.reduce(0) { $0 + $1.count }
    let originalTokens = length * own.reduce(0) { $0 + $1.clamped(to: 0..<originalSamples).count }
    let (allTokens, allOriginalTokens) = (length * settings.samples, length * originalSamples)
    var products = RankProducts()
    for index in 0..<model.layerCount {
      let stages = model.stages(ofLayer: index)
      for (number, stage) in stages.enumerated() {
        let order = stage.linears[0].inFeatures
        let tiles = backend.gramTiles(order: order, operands: operands)
        products.gram +=
          allTokens * tiles.indices.filter { $0 % count == rank }.reduce(0) { $0 + tiles[$1].products }
        guard stage.experts.isEmpty else {
          products.add(mixture(stage, layer: index), ranks: count)
          continue
        }
        let rows = rows(of: stage, layer: index, ranks: count)[rank]
        // What the last one leaves nobody reads, and some leave nothing until they are run again with another.
        let isLast = index == model.layerCount - 1 && number == stages.count - 1 && head == nil
        if !isLast, !stage.isRunAgain {
          products.forward += (tokens + originalTokens) * (stage.linears + stage.companions).weightCount
        }
        if stage.residualScale != nil, allOriginalTokens > 0, (index, number) != (0, 0) {
          products.forward += originalTokens * stage.linears.weightCount
          products.drift += rows * (allOriginalTokens * order + order * order)
          products.factors += ProductCounter.factor(order: order)
        }
        if rows > 0 {
          products.add(solving(stage.linears, rows: rows, layer: index))
        }
      }
    }
    guard work(operands).correctsHead else { return products }
    if let last = model.stages(ofLayer: model.layerCount - 1).last, last.experts.isEmpty {
      products.forward += 2 * originalTokens * (last.linears + last.companions).weightCount
    }
    // The first rank's alone.
    if rank == 0 {
      let width = model.head.width
      let tiles = backend.gramTiles(order: width, operands: operands)
      products.gram += allOriginalTokens * tiles.reduce(0) { $0 + $1.products }
      products.drift += width * (allOriginalTokens * width + width * width)
      products.factors += ProductCounter.factor(order: width)
    }
    return products
  }

  /// The rows that each rank solves of a stage's linears.
  func rows(of stage: Stage, layer: Int, ranks count: Int) -> [Int] {
    var dealer = PanelDealer(ranks: count)
    for linear in stage.linears {
      guard let treatment = treatments[model.layerPrefix(layer) + linear.name] else { continue }
      if treatment.isSolvedWhole {
        _ = dealer.owner(ofRows: linear.outFeatures)
      } else {
        _ = dealer.owners(of: MemoryPlan.panels(of: linear.outFeatures))
      }
    }
    return dealer.rows
  }

  /// What so many rows of linears that read the same inputs take.
  private func solving(_ linears: [LayerLinear], rows: Int, layer: Int) -> RankProducts {
    let solvers = linears.compactMap { treatments[model.layerPrefix(layer) + $0.name]?.quantizer }
    let order = linears[0].inFeatures
    var products = RankProducts()
    if solvers.contains(where: { !($0 is RoundToNearest) }) {
      products.factors = ProductCounter.factor(order: order)
    }
    if solvers.contains(where: { !($0 is RoundToNearest || $0 is GPTQ) }) {
      let passes = order < Self.leastWide ? Self.descentPasses.narrow : Self.descentPasses.wide
      products.descent = rows * order * order * passes
    }
    return products
  }

  /// What all of a stage's experts take.
  private func mixture(_ stage: Stage, layer: Int) -> RankProducts {
    let perToken = model.expertsPerToken(ofLayer: layer)
    let tokens = Double(settings.sequenceLength * (settings.samples + work(.float32).originalSamples))
    let calibrated = Double(settings.sequenceLength * settings.samples)
    let routed = stage.experts.count { $0.number != nil }
    let more = mixtureProducts(stage, perToken: perToken)
    var products = RankProducts()
    for expert in stage.experts {
      let share = expert.number == nil ? 1 : Double(perToken) / Double(routed)
      for half in [expert.expansion, expert.contraction] {
        let rows = half.linears.reduce(0) { $0 + $1.outFeatures }
        products.forward += Int(tokens * share * Double(half.linears.weightCount))
        products.add(solving(half.linears, rows: rows, layer: layer))
      }
    }
    products.forward += Int(more.perToken * tokens + more.once)
    // A triangle each.
    products.gram += Int((more.squaresPerToken * calibrated + more.squaresOnce) / 2)
    return products
  }

  /// Of a layer's experts, multiplications and additions that are done besides running each token once through them and
  /// adding up what they all read: the first half is run once more for the second one's Gram matrix, some tokens from all
  /// over with it, and every half has a matrix of its own.
  func mixtureProducts(
    _ stage: Stage, perToken experts: Int
  ) -> (perToken: Double, once: Double, squaresPerToken: Double, squaresOnce: Double) {
    var products = (perToken: 0.0, once: 0.0, squaresPerToken: 0.0, squaresOnce: 0.0)
    let routed = stage.experts.count { $0.number != nil }
    for expert in stage.experts {
      // Tokens are spread over all of them.
      let share = expert.number == nil ? 1 : Double(experts) / Double(routed)
      let weights = Double(expert.expansion.linears.weightCount)
      let (outer, inner) = (Double(expert.expansion.inFeatures), Double(expert.contraction.inFeatures))
      let others = Double(ExpertGrams.priorTokens) * inner
      products.perToken += share * weights
      products.once += others * weights
      let isOwn = settings.expertGram == .own
      products.squaresPerToken += share * (inner * inner + (isOwn ? outer * outer : 0))
      products.squaresOnce += others * inner * inner
    }
    return products
  }
}

extension RankProducts {
  /// Adds one rank's part of what ranks share.
  fileprivate mutating func add(_ all: RankProducts, ranks count: Int = 1) {
    forward += all.forward / count
    gram += all.gram / count
    drift += all.drift / count
    factors += all.factors / count
    descent += all.descent / count
  }
}
