// An RGB image: read from a PPM file, fitted to a size, and resized as Pillow's bilinear filter does.
//
// The results are equal, except for tall images: Pillow 13 takes columns before rows where that is faster, and values
// may then differ by 1, as each pass rounds to 8 bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
    int width, height;
    std::vector<std::uint8_t> pixels;  // red, green, blue; row by row
};

// The next number in the header of a PPM file, after white space and comments.
inline int header_number(std::istream& file) {
    for (file >> std::ws; file.peek() == '#'; file >> std::ws) {
        std::string comment;
        std::getline(file, comment);
    }
    int number = 0;
    if (!(file >> number) || number < 1 || number > 65535) throw std::runtime_error("not a PPM file");
    return number;
}

// Reads a binary PPM file (P6) of 8 bits.
inline Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("no such file");
    char magic[2] = {};
    if (!file.read(magic, 2) || magic[0] != 'P' || magic[1] != '6') throw std::runtime_error("not a binary PPM file (P6)");
    Image image;
    image.width = header_number(file);
    image.height = header_number(file);
    if (header_number(file) != 255) throw std::runtime_error("expected 8 bits per channel");
    file.get();  // one white-space character ends the header
    image.pixels.resize(std::size_t(3) * image.width * image.height);
    if (!file.read(reinterpret_cast<char*>(image.pixels.data()), std::streamsize(image.pixels.size())))
        throw std::runtime_error("truncated");
    return image;
}

// Which pixels of a line contribute to one pixel of the resized line: weights[i] is that of pixel first + i.
struct Window {
    int first;
    std::vector<std::int32_t> weights;
};

constexpr int FRACTION = 22;  // bits after the point of a weight

// For `to` pixels made of those from `begin` to `end` of a line of `count`; a filter also reaches those beside them.
inline std::vector<Window> windows(int count, int begin, int end, int to) {
    const double scale = double(end - begin) / to;
    const double support = std::max(scale, 1.0);  // when shrinking, the triangle widens: this is the antialiasing
    std::vector<Window> result;
    for (int i = 0; i < to; ++i) {
        const double centre = begin + (i + 0.5) * scale;
        const int first = std::max(0, int(centre - support + 0.5));
        const int last = std::min(count, int(centre + support + 0.5));
        std::vector<double> triangle;
        double sum = 0;
        for (int x = first; x < last; ++x) {
            triangle.push_back(std::max(0.0, 1 - std::abs((x - centre + 0.5) * (1 / support))));
            sum += triangle.back();
        }
        Window window{first, {}};
        for (double weight : triangle) window.weights.push_back(std::int32_t(0.5 + weight / sum * (1 << FRACTION)));
        result.push_back(window);
    }
    return result;
}

// A part of an image: its left upper corner and its size.
struct Box {
    int left, top, width, height;
};

// Resizes a part of an image to (width, height): rows first, rounded to 8 bits, then columns.
inline Image resized(const Image& image, const Box& box, int width, int height) {
    const auto rounded = [](std::int32_t sum) { return std::uint8_t(std::clamp(sum >> FRACTION, 0, 255)); };
    const std::int32_t half = 1 << (FRACTION - 1);
    Image wide{width, image.height, std::vector<std::uint8_t>(std::size_t(3) * width * image.height)};
    const auto across = windows(image.width, box.left, box.left + box.width, width);
    const auto down = windows(image.height, box.top, box.top + box.height, height);
    for (int y = 0; y < image.height; ++y)
        for (int x = 0; x < width; ++x)
            for (int c = 0; c < 3; ++c) {
                std::int32_t sum = half;
                const std::uint8_t* from = &image.pixels[3 * (std::size_t(y) * image.width + across[x].first) + c];
                for (std::size_t i = 0; i < across[x].weights.size(); ++i) sum += from[3 * i] * across[x].weights[i];
                wide.pixels[3 * (std::size_t(y) * width + x) + c] = rounded(sum);
            }
    Image result{width, height, std::vector<std::uint8_t>(std::size_t(3) * width * height)};
    const std::size_t line = std::size_t(3) * width;
    for (int y = 0; y < height; ++y)
        for (std::size_t x = 0; x < line; ++x) {
            std::int32_t sum = half;
            const std::uint8_t* from = &wide.pixels[down[y].first * line + x];
            for (std::size_t i = 0; i < down[y].weights.size(); ++i) sum += from[i * line] * down[y].weights[i];
            result.pixels[y * line + x] = rounded(sum);
        }
    return result;
}

enum class Fit { squash, pad, crop };

// The largest box with the proportions of (width, height) in the middle of another one, at least one pixel wide and high.
inline Box largest(std::int64_t width, std::int64_t height, std::int64_t most_wide, std::int64_t most_high) {
    const bool wide = width * most_high >= height * most_wide;
    const int w = wide ? most_wide : std::max<std::int64_t>(1, (2 * width * most_high + height) / (2 * height));
    const int h = wide ? std::max<std::int64_t>(1, (2 * height * most_wide + width) / (2 * width)) : most_high;
    return {int(most_wide - w) / 2, int(most_high - h) / 2, w, h};
}

// Squashes an image to (width, height), or keeps its proportions: pads it with the pixels at its edge, or crops it.
inline Image fitted(const Image& image, int width, int height, Fit fit) {
    const Box whole{0, 0, image.width, image.height}, frame{0, 0, width, height};
    const Box taken = fit == Fit::crop ? largest(width, height, image.width, image.height) : whole;
    const Box filled = fit == Fit::pad ? largest(image.width, image.height, width, height) : frame;
    const Image content = resized(image, taken, filled.width, filled.height);
    Image result{width, height, std::vector<std::uint8_t>(std::size_t(3) * width * height)};
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x) {
            const int row = std::clamp(y - filled.top, 0, filled.height - 1);
            const int column = std::clamp(x - filled.left, 0, filled.width - 1);
            const auto from = content.pixels.begin() + 3 * (std::ptrdiff_t(row) * filled.width + column);
            std::copy_n(from, 3, result.pixels.begin() + 3 * (std::ptrdiff_t(y) * width + x));
        }
    return result;
}
