import Checkpoint
import SystemIO
import Tensors

/// Reads the outliers that ``OutlierFile`` describes.
struct StoredOutliers: Sendable {
  private let reader: CheckpointReader

  /// nil if the configuration speaks of none.
  init?(configuration: JSONValue, directory: String, symlinks: SymlinkPolicy) throws {
    guard configuration["outliers"]?.object != nil else { return nil }
    // The place is fixed: a path from the file could lead out of the directory.
    reader = try CheckpointReader(
      file: FileSystem.join(directory, OutlierFile.path), symlinks: symlinks)
  }

  /// What the file has for a linear, its tensors checked against each other; nil if nothing.
  func layout(
    of linear: String, outFeatures: Int
  ) throws(PackedCheckpointError) -> OutlierLayout? {
    guard let values = reader.tensors[OutlierFile.values(of: linear)] else { return nil }
    let columns = OutlierFile.columns(of: linear)
    let rowOffsets = OutlierFile.rowOffsets(of: linear)
    guard let count = values.shape.last else { throw .missingTensor(values.name) }
    try reader.require(columns, [.int32], shape: [count])
    if reader.tensors[rowOffsets] == nil {
      try reader.require(values.name, [OutlierFile.valueType], shape: [outFeatures, count])
      return .structured(columns: count)
    }
    try reader.require(values.name, [OutlierFile.valueType], shape: [count])
    try reader.require(rowOffsets, [.int64], shape: [outFeatures + 1])
    return .unstructured(count: count)
  }

  /// Adds Ĥ of some rows of `linear` to `panel`, `[rows.count, inFeatures]`.
  func add(_ layout: OutlierLayout, of linear: String, rows: Range<Int>, to panel: Matrix) throws {
    let values = OutlierFile.values(of: linear)
    let columns = OutlierFile.columns(of: linear)
    switch layout {
    case .structured(let count):
      let places = try self.columns(columns, 0..<count, below: panel.columns)
      let entries = try reader.floats(values, rows: rows, columns: 0..<count)
      for row in 0..<rows.count {
        for (index, column) in places.enumerated() {
          panel[row, column] += entries[row * count + index]
        }
      }
    case .unstructured(let count):
      let tensor = OutlierFile.rowOffsets(of: linear)
      let offsets = try reader.integers(tensor, rows.lowerBound..<(rows.upperBound + 1))
      var last = 0
      for (index, offset) in offsets.enumerated() {
        guard (last...count).contains(offset) else {
          throw PackedCheckpointError.invalidOutliers(
            tensor: tensor, index: rows.lowerBound + index, value: offset)
        }
        last = offset
      }
      let range = offsets[0]..<last
      let places = try self.columns(columns, range, below: panel.columns)
      let entries = try reader.floats(values, rows: 0..<1, columns: range)
      for row in 0..<rows.count {
        for entry in offsets[row]..<offsets[row + 1] {
          panel[row, places[entry - range.lowerBound]] += entries[entry - range.lowerBound]
        }
      }
    }
  }

  private func columns(_ tensor: String, _ range: Range<Int>, below limit: Int) throws -> [Int] {
    let columns = try reader.integers(tensor, range)
    if let index = columns.firstIndex(where: { !(0..<limit).contains($0) }) {
      throw PackedCheckpointError.invalidOutliers(
        tensor: tensor, index: range.lowerBound + index, value: columns[index])
    }
    return columns
  }
}
