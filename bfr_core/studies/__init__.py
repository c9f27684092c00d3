"""What only shows or measures the method: demonstration, benchmarks, tables, votes, the check of published weights."""
