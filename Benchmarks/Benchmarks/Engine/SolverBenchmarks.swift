import Checkpoint
import Compute
import Quantization
import Solvers
import Tensors

private let format = GridFormat(
  bitWidth: .three, groupSize: .channel, isSymmetric: false, scaleTypes: [.bfloat16])
private let panelRows = 1_024

/// A linear's weights with the Gram matrix of its inputs.
private struct LinearProblem {
  let weights: Matrix
  let gram: Matrix
}

extension Suite {
  private static let quick: [any LayerSolver] = [QuantEase(.standard()), GPTQ(), RoundToNearest()]

  func addSolvers() {
    if let file = Surroundings.referenceLayers {
      let names = [
        ("layers.15.self_attn.q_proj", 576, 576), ("layers.15.mlp.gate_proj", 1_536, 576),
        ("layers.15.mlp.down_proj", 576, 1_536), ("layers.29.self_attn.o_proj", 576, 576),
      ]
      for (name, outFeatures, inFeatures) in names {
        for solver in Self.quick {
          addSolver(solver, of: name, outFeatures: outFeatures, inFeatures: inFeatures) {
            let file = try CheckpointReader(file: file)
            return LinearProblem(
              weights: try file.matrix("\(name).weight", shape: [outFeatures, inFeatures]),
              gram: try file.matrix("\(name).gram", shape: [inFeatures, inFeatures]))
          }
        }
      }
    }
    for size in [1_024, 4_096] {
      for solver in Self.quick {
        addSynthetic(solver, outFeatures: size, inFeatures: size, iterations: size > 2_048 ? 3 : 7)
      }
    }
    addSolver(
      QuantEase(.paper()), named: "paper", of: "synthetic-1024x1024", outFeatures: 1_024,
      inFeatures: 1_024, iterations: 3
    ) { synthetic(outFeatures: 1_024, inFeatures: 1_024) }
    // The MLP's second half in a model of 7 billion parameters; once, as it takes its time.
    for solver in Self.quick {
      addSynthetic(solver, outFeatures: 4_096, inFeatures: 11_008, iterations: 1)
    }
  }

  private func addSynthetic(
    _ solver: any LayerSolver, outFeatures: Int, inFeatures: Int, iterations: Int
  ) {
    addSolver(
      solver, of: "synthetic-\(outFeatures)x\(inFeatures)", outFeatures: outFeatures,
      inFeatures: inFeatures, iterations: iterations
    ) { synthetic(outFeatures: outFeatures, inFeatures: inFeatures) }
  }

  private func addSolver(
    _ solver: any LayerSolver, named name: String? = nil, of linear: String, outFeatures: Int,
    inFeatures: Int, iterations: Int = 7, _ load: @escaping () throws -> LinearProblem
  ) {
    add(
      "solver.\(name ?? solver.name).\(linear)",
      .densePass(outFeatures: outFeatures, inFeatures: inFeatures), iterations: iterations,
      isWarmedUp: iterations > 1
    ) {
      let linear = try load()
      let weights = Matrix(rows: outFeatures, columns: inFeatures)
      let gram = Matrix(rows: inFeatures, columns: inFeatures)
      // A problem remembers its factors, which belong to what is measured: every run has a new one.
      return Trial(
        reset: {
          weights.copy(from: linear.weights)
          gram.copy(from: linear.gram)
        },
        run: {
          _ = try solver.quantize(
            name: "linear", weights: weights,
            problem: LayerProblem(gram: gram, damping: solver.damping(for: format), backend: backend),
            format: format, backend: backend, panelRows: panelRows)
        })
    }
  }

  /// Random weights, and inputs that a few directions dominate, as those of language models.
  private func synthetic(outFeatures: Int, inFeatures: Int) -> LinearProblem {
    let (tokensPerBatch, batches, rank) = (2_048, 4, 12)
    var noise = Noise(seed: 5)
    let directions = noise.matrix(rows: rank, columns: inFeatures)
    let inputs = Matrix(rows: tokensPerBatch, columns: inFeatures)
    let gram = Matrix(rows: inFeatures, columns: inFeatures)
    for _ in 0..<batches {
      noise.fill(inputs)
      let strengths = noise.matrix(rows: tokensPerBatch, columns: rank)
      backend.multiply(
        strengths, directions, transposingB: false, scale: 1, into: inputs, keeping: 0.3)
      backend.accumulateGram(inputs, into: gram)
    }
    backend.symmetrize(gram)
    return LinearProblem(
      weights: noise.matrix(rows: outFeatures, columns: inFeatures, deviation: 0.02), gram: gram)
  }
}
