import Compute
import Decoder
import Export
import SystemIO

// What a run writes, and what its report says of it.
extension QuantizationRun {
  var kernels: String { backend.kernels(for: operands) }

  var exportedLinears: [LinearDescription] {
    (0..<description.layerCount).flatMap { index in
      description.linears(ofLayer: index).map { linear in
        let name = description.layerPrefix(index) + linear.name
        let treatment = treatments[name]
        return LinearDescription(
          name: name, outFeatures: linear.outFeatures, inFeatures: linear.inFeatures,
          gridFormat: treatment?.gridFormat, hasBias: linear.hasBias,
          outliers: treatment?.outliers.map { OutlierLayout($0, linear) })
      }
    }
  }

  var cachePath: String {
    let directory = request.cacheDirectory ?? FileSystem.parent(of: request.output)
    return FileSystem.join(directory, ".\(FileSystem.name(of: request.output)).activations.mdb")
  }

  var settings: Report.Settings {
    let standard = request.recipe.standard
    var settings = Report.Settings(
      bits: standard.gridFormat.bitWidth.rawValue,
      groupSize: standard.gridFormat.groupSize.notation,
      symmetric: standard.gridFormat.isSymmetric, solver: standard.quantizer.name,
      target: request.target.rawValue,
      targetSamples: request.target == .original ? request.originalSamples : nil,
      formats: request.formats,
      calibration: Report.Calibration(
        samples: request.calibration.samples, sequenceLength: request.calibration.sequenceLength,
        seed: request.seed, source: FileSystem.name(of: request.calibrationSource)))
    settings.kernels = kernels
    return settings
  }
}
